/* The floor: what the kernel alone costs. Whoever GETs is kept; the body of every POST goes to all of them as one
 * event, with one send() each. It looks at nothing and remembers nothing: a bound, not a server.
 * Built and run by `bench/contestants.py`: floor PORT. Sockets block, so a burst waits instead of being lost. */
#define _GNU_SOURCE
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { MOST = 1 << 20, ROOM = 8 << 20 };
static int kept[MOST], place[MOST], many;
static char taken[ROOM + 1], sent[ROOM + 256];
static size_t have;

static void keep(int fd) {
    kept[many] = fd;
    place[fd] = ++many;
}

static void drop(int fd) {
    int at = place[fd];
    if (at) {
        place[kept[at - 1] = kept[--many]] = at;
        place[fd] = 0;
    }
    close(fd);
}

static void tell(const char *body, size_t size) {
    char frame[256];
    int before = snprintf(frame, sizeof frame, "event: load\ndata: "), after = sizeof "\nid: 1\n\n" - 1;
    int head = sprintf(sent, "%zx\r\n%s", before + size + after, frame);
    memcpy(sent + head, body, size);
    size_t whole = head + size + sprintf(sent + head + size, "\nid: 1\n\n\r\n");
    for (int i = 0; i < many; i++)
        if (send(kept[i], sent, whole, MSG_NOSIGNAL) < 0) continue;
}

static void answer(int fd) { send(fd, "HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n", 45, MSG_NOSIGNAL); }

/* All whole POSTs of what has come. */
static void take(int fd) {
    char *at = taken, *end = taken + have;
    for (;;) {
        *end = 0;
        char *body = strstr(at, "\r\n\r\n"), *length = strcasestr(at, "content-length:");
        if (!body || !length) break;
        size_t size = strtoul(length + 15, NULL, 10);
        body += 4;
        if ((size_t)(end - body) < size) break;
        tell(body, size);
        answer(fd);
        at = body + size;
    }
    have = end - at;
    memmove(taken, at, have);
}

static void hear(int fd) {
    ssize_t got = recv(fd, taken + have, ROOM - have, 0);
    if (got <= 0) {
        drop(fd);
    } else if (place[fd]) {
        return;
    } else if (have || taken[0] != 'G') {
        have += got;
        take(fd);
    } else {
        static const char hello[] = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
                                    "Transfer-Encoding: chunked\r\n\r\n";
        send(fd, hello, sizeof hello - 1, MSG_NOSIGNAL);
        keep(fd);
    }
}

int main(int count, char **words) {
    int listener = socket(AF_INET, SOCK_STREAM, 0), poller = epoll_create1(0), yes = 1;
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(count > 1 ? atoi(words[1]) : 0),
                             .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct epoll_event wish = {.events = EPOLLIN, .data.fd = listener}, found[256];
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    if (bind(listener, (struct sockaddr *)&at, sizeof at) || listen(listener, 4096)) return 1;
    epoll_ctl(poller, EPOLL_CTL_ADD, listener, &wish);
    for (;;)
        for (int n = epoll_wait(poller, found, 256, -1), i = 0; i < n; i++) {
            int fd = found[i].data.fd;
            if (fd != listener) {
                hear(fd);
                continue;
            }
            wish.data.fd = accept(listener, NULL, NULL);
            if (wish.data.fd < 0 || wish.data.fd >= MOST) continue;
            setsockopt(wish.data.fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
            epoll_ctl(poller, EPOLL_CTL_ADD, wish.data.fd, &wish);
        }
}
