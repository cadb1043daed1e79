/* The echo on libevent, by its bufferevents. */
#include "listen.h"

#include <event2/buffer.h>
#include <event2/bufferevent.h>
#include <event2/event.h>
#include <event2/listener.h>

static void ended(struct bufferevent* stream, short what, void* context) {
  (void)context;
  if ((what & (BEV_EVENT_EOF | BEV_EVENT_ERROR)) != 0) bufferevent_free(stream);
}

/* A peer that does not read is not read from: what waits to be sent is bounded. */
enum { waiting_bytes_max = 256 * 1024 };

static void got(struct bufferevent* stream, void* context) {
  (void)context;
  struct evbuffer* output = bufferevent_get_output(stream);
  bufferevent_read_buffer(stream, output);
  if (evbuffer_get_length(output) > waiting_bytes_max) bufferevent_disable(stream, EV_READ);
}

static void sent(struct bufferevent* stream, void* context) {
  (void)context;
  bufferevent_enable(stream, EV_READ);
}

static void incoming(struct evconnlistener* listener, evutil_socket_t fd, struct sockaddr* from,
                     int size, void* context) {
  (void)from;
  (void)size;
  (void)context;
  struct bufferevent* stream =
      bufferevent_socket_new(evconnlistener_get_base(listener), fd, BEV_OPT_CLOSE_ON_FREE);
  if (stream == NULL) {
    close(fd);
    return;
  }
  bufferevent_setcb(stream, got, sent, ended, NULL);
  bufferevent_enable(stream, EV_READ | EV_WRITE);
}

int main(void) {
  struct event_base* base = event_base_new();
  if (base == NULL) die("event_base_new");
  if (evconnlistener_new(base, incoming, NULL, LEV_OPT_CLOSE_ON_FREE | LEV_OPT_CLOSE_ON_EXEC, 0,
                         listen_on_loopback("event_echo")) == NULL)
    die("evconnlistener_new");
  return event_base_dispatch(base);
}
