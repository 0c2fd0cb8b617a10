package example;

import com.nimbusds.jose.jwk.source.ImmutableSecret;
import jakarta.servlet.http.HttpSession;
import java.nio.charset.StandardCharsets;
import java.security.Principal;
import java.time.Instant;
import java.util.Map;
import javax.crypto.spec.SecretKeySpec;
import org.springframework.beans.factory.annotation.Value;
import org.springframework.http.CacheControl;
import org.springframework.http.HttpStatus;
import org.springframework.http.MediaType;
import org.springframework.http.ResponseEntity;
import org.springframework.security.oauth2.jose.jws.MacAlgorithm;
import org.springframework.security.oauth2.jwt.JwsHeader;
import org.springframework.security.oauth2.jwt.JwtClaimsSet;
import org.springframework.security.oauth2.jwt.JwtEncoder;
import org.springframework.security.oauth2.jwt.JwtEncoderParameters;
import org.springframework.security.oauth2.jwt.NimbusJwtEncoder;
import org.springframework.web.bind.annotation.GetMapping;
import org.springframework.web.bind.annotation.RequestMapping;
import org.springframework.web.bind.annotation.RestController;
import org.springframework.web.client.RestClient;

/**
 * pushsse beside Spring. Permit {@code /push/**} in your filter chain: who isn't signed in gets 401 here, and no
 * redirect. {@code pushsse.jwt-secret} is the node's; {@code pushsse.url} is where the node takes administrators' calls.
 */
@RestController
@RequestMapping("/push")
class PushController {
    private final JwtEncoder encoder;
    private final RestClient node;

    PushController(@Value("${pushsse.jwt-secret}") String secret, @Value("${pushsse.url}") String url) {
        var key = new SecretKeySpec(secret.getBytes(StandardCharsets.UTF_8), "HmacSHA256");
        encoder = new NimbusJwtEncoder(new ImmutableSecret<>(key));
        node = RestClient.create(url);
    }

    /** PUSHSSE_AUTH_URL: the node asks here, with a request's cookie, whose session that is. */
    @GetMapping("/session")
    ResponseEntity<?> session(Principal person, HttpSession session) {
        return answer(person, () -> Map.of("user", person.getName(), "expires_in_s", session.getMaxInactiveInterval()));
    }

    /** For a page of another site, or an app: a token of ten minutes. */
    @GetMapping(value = "/token", produces = MediaType.TEXT_PLAIN_VALUE)
    ResponseEntity<?> token(Principal person) {
        return answer(person, () -> token(person.getName(), "pushsse:stream pushsse:ask pushsse:preferences", 600));
    }

    /** For a page that must not hold a token: a ticket, which opens one stream and nothing else. */
    @GetMapping("/ticket")
    ResponseEntity<?> ticket(Principal person) {
        return answer(person, () -> node.post().uri("/v1/tickets")
            .header("Authorization", "Bearer " + token("site", "pushsse:admin", 60))
            .contentType(MediaType.APPLICATION_JSON)
            .body(Map.of("user", person.getName()))
            .retrieve().body(Map.class));
    }

    private String token(String user, String scope, int seconds) {
        var now = Instant.now();
        var claims = JwtClaimsSet.builder().subject(user).claim("scope", scope)
            .issuedAt(now).expiresAt(now.plusSeconds(seconds)).build();
        var header = JwsHeader.with(MacAlgorithm.HS256).build();
        return encoder.encode(JwtEncoderParameters.from(header, claims)).getTokenValue();
    }

    private static ResponseEntity<?> answer(Principal person, java.util.function.Supplier<?> body) {
        if (person == null) return ResponseEntity.status(HttpStatus.UNAUTHORIZED).build();
        return ResponseEntity.ok().cacheControl(CacheControl.noStore()).body(body.get());
    }
}
