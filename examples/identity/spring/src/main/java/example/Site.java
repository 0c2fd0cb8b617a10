package example;

import jakarta.servlet.http.HttpServletRequest;
import jakarta.servlet.http.HttpServletResponse;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import org.springframework.beans.factory.annotation.Value;
import org.springframework.boot.SpringApplication;
import org.springframework.boot.autoconfigure.SpringBootApplication;
import org.springframework.context.annotation.Bean;
import org.springframework.http.MediaType;
import org.springframework.security.authentication.UsernamePasswordAuthenticationToken;
import org.springframework.security.config.annotation.web.builders.HttpSecurity;
import org.springframework.security.core.context.SecurityContextHolder;
import org.springframework.security.web.SecurityFilterChain;
import org.springframework.security.web.authentication.session.ChangeSessionIdAuthenticationStrategy;
import org.springframework.security.web.context.HttpSessionSecurityContextRepository;
import org.springframework.web.bind.annotation.GetMapping;
import org.springframework.web.bind.annotation.RequestParam;
import org.springframework.web.bind.annotation.RestController;

/** A site to try {@link PushController} with: {@code /login?user=ann} signs in without a password. */
@SpringBootApplication
@RestController
class Site {
    private final String page;

    Site(@Value("${site.page}") String page, @Value("${pushsse.url}") String url) throws IOException {
        this.page = Files.readString(Path.of(page)).replace("http://127.0.0.1:8000", url);
    }

    public static void main(String[] arguments) {
        SpringApplication.run(Site.class, arguments);
    }

    @Bean
    SecurityFilterChain chain(HttpSecurity http) throws Exception {
        return http.authorizeHttpRequests(of -> of.requestMatchers("/", "/login", "/push/**").permitAll()
            .anyRequest().authenticated()).build();
    }

    @GetMapping(value = "/", produces = MediaType.TEXT_HTML_VALUE)
    String page() {
        return page;
    }

    @GetMapping("/login")
    void login(@RequestParam String user, HttpServletRequest request, HttpServletResponse response) throws IOException {
        var context = SecurityContextHolder.createEmptyContext();
        var person = UsernamePasswordAuthenticationToken.authenticated(user, null, List.of());
        context.setAuthentication(person);
        // As Spring's own logins do: whoever gave this browser its session doesn't know the new id.
        new ChangeSessionIdAuthenticationStrategy().onAuthentication(person, request, response);
        new HttpSessionSecurityContextRepository().saveContext(context, request, response);
        response.sendRedirect("/");
    }
}
