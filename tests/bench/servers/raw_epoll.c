/* The leanest echo we know on epoll: edge-triggered, registered once, one recv and one send a message.
 *
 * A read that comes back short has emptied the socket, unless the peer has ended the stream: data and
 * FIN can come with one edge. A read that fills the buffer may have left something behind; modifying
 * the registration makes the kernel report that again, after everybody else had a turn. What the
 * socket does not take is kept, and nothing is read from its peer until it has been sent.
 */
#define _GNU_SOURCE
#include "listen.h"

#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <sys/epoll.h>

enum { events_max = 256, buffer_bytes = 64 * 1024 };

/* What is still to be sent. */
struct rest {
  size_t begin, end;
  char bytes[];
};

static const uint32_t stream_events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET;
static int epoll_fd;
static struct rest** rests; /* by descriptor */
static char buffer[buffer_bytes];

static void control(int what, int fd, uint32_t events) {
  struct epoll_event event = {.events = events, .data = {.fd = fd}};
  if (epoll_ctl(epoll_fd, what, fd, &event) < 0) die("epoll_ctl");
}

static void end(int fd) {
  free(rests[fd]);
  rests[fd] = NULL;
  close(fd);
}

/* False when the connection is broken. */
static bool send_rest(int fd) {
  struct rest* r = rests[fd];
  const ssize_t sent = send(fd, r->bytes + r->begin, r->end - r->begin, MSG_NOSIGNAL);
  if (sent < 0) return errno == EAGAIN;
  r->begin += (size_t)sent;
  if (r->begin == r->end) {
    free(r);
    rests[fd] = NULL;
  }
  return true;
}

static bool keep_rest(int fd, const char* from, size_t size) {
  struct rest* r = malloc(sizeof(*r) + size);
  if (r == NULL) return false;
  r->begin = 0;
  r->end = size;
  memcpy(r->bytes, from, size);
  rests[fd] = r;
  return true;
}

/* False when the connection has ended. */
static bool serve(int fd, uint32_t events) {
  if (rests[fd] != NULL) {
    if (!send_rest(fd)) return false;
    if (rests[fd] != NULL) return true;
  }
  const ssize_t got = recv(fd, buffer, sizeof(buffer), 0);
  if (got == 0) return false;
  if (got < 0) return errno == EAGAIN;
  ssize_t sent = send(fd, buffer, (size_t)got, MSG_NOSIGNAL);
  if (sent < got) {
    if (sent < 0 && errno != EAGAIN) return false;
    if (sent < 0) sent = 0;
    if (!keep_rest(fd, buffer + sent, (size_t)(got - sent))) return false;
  }
  /* After a short send, room may have come before the socket knew that somebody waits for it. */
  if (sent < got || got == (ssize_t)sizeof(buffer) ||
      (events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR)) != 0)
    control(EPOLL_CTL_MOD, fd, stream_events);
  return true;
}

int main(void) {
  const int listener = listen_on_loopback("raw_epoll");
  struct epoll_event events[events_max];
  rests = calloc(descriptors_max(), sizeof(*rests));
  epoll_fd = epoll_create1(EPOLL_CLOEXEC);
  if (rests == NULL || epoll_fd < 0) die("raw_epoll");
  control(EPOLL_CTL_ADD, listener, EPOLLIN);
  for (;;) {
    const int count = epoll_wait(epoll_fd, events, events_max, -1);
    for (int i = 0; i < count; ++i) {
      if (events[i].data.fd != listener) {
        if (!serve(events[i].data.fd, events[i].events)) end(events[i].data.fd);
        continue;
      }
      const int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
      if (fd >= 0) control(EPOLL_CTL_ADD, fd, stream_events);
    }
  }
}
