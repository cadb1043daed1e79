/* What the C servers share: a listener on a port of the kernel's choice, and the line that says which. */
#ifndef BENCH_LISTEN_H
#define BENCH_LISTEN_H

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#ifdef __cplusplus
extern "C" {
#endif

static inline void die(const char* what) {
  perror(what);
  exit(1);
}

static inline int listen_on_loopback(const char* name) {
  const int on = 1;
  struct sockaddr_in address;
  socklen_t size = sizeof(address);
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (fd < 0) die("socket");
  memset(&address, 0, sizeof(address));
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  /* Connections inherit it. */
  if (setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on)) < 0) die("setsockopt");
  if (bind(fd, (const struct sockaddr*)&address, size) < 0) die("bind");
  if (listen(fd, SOMAXCONN) < 0) die("listen");
  if (getsockname(fd, (struct sockaddr*)&address, &size) < 0) die("getsockname");
  printf("%s: listening on 127.0.0.1:%d\n", name, ntohs(address.sin_port));
  fflush(stdout);
  return fd;
}

/* Descriptors this process may have: the size of a table indexed by them. */
static inline size_t descriptors_max(void) {
  struct rlimit limit;
  if (getrlimit(RLIMIT_NOFILE, &limit) < 0) die("getrlimit");
  return limit.rlim_cur < (1u << 20) ? limit.rlim_cur : 1u << 20;
}

#ifdef __cplusplus
}
#endif

#endif
