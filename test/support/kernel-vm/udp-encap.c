// Makes the kernel take ESP in UDP (RFC 3948) on a port, over IPv4 and IPv6: it does so only for a socket that asks.
// udp-encap PORT: prints "ready" and keeps the sockets until it is killed.
#include <arpa/inet.h>
#include <linux/udp.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

static void encapsulated(int family, const void *address, socklen_t length) {
  const int on = 1, type = UDP_ENCAP_ESPINUDP;
  const int fd = socket(family, SOCK_DGRAM, 0);
  if (fd < 0 || (family == AF_INET6 && setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof on) != 0) ||
      bind(fd, address, length) != 0 || setsockopt(fd, IPPROTO_UDP, UDP_ENCAP, &type, sizeof type) != 0) {
    perror(family == AF_INET6 ? "udp-encap: IPv6" : "udp-encap: IPv4");
    exit(1);
  }
}

int main(int argc, char **argv) {
  const in_port_t port = htons((in_port_t)(argc == 2 ? atoi(argv[1]) : 4500));
  const struct sockaddr_in v4 = {.sin_family = AF_INET, .sin_port = port};
  const struct sockaddr_in6 v6 = {.sin6_family = AF_INET6, .sin6_port = port};
  encapsulated(AF_INET, &v4, sizeof v4);
  encapsulated(AF_INET6, &v6, sizeof v6);
  puts("ready");
  fflush(stdout);
  for (;;) pause();
}
