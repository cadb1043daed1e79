/* The echo on libuv, as lean as its interface allows: one buffer for all reads, uv_try_write first. */
#define _GNU_SOURCE
#include "listen.h"

#include <string.h>
#include <uv.h>

struct rest {
  uv_write_t request;
  char bytes[];
};

static char shared[64 * 1024];

static void check(int status, const char* what) {
  if (status >= 0) return;
  fprintf(stderr, "%s: %s\n", what, uv_strerror(status));
  exit(1);
}

static void closed(uv_handle_t* handle) { free(handle); }

static void end(uv_stream_t* stream) {
  if (!uv_is_closing((uv_handle_t*)stream)) uv_close((uv_handle_t*)stream, closed);
}

static void offer(uv_handle_t* handle, size_t suggested, uv_buf_t* into) {
  (void)handle;
  (void)suggested;
  *into = uv_buf_init(shared, sizeof(shared));
}

static void got(uv_stream_t* stream, ssize_t size, const uv_buf_t* from);

static void written(uv_write_t* request, int status) {
  uv_stream_t* stream = request->handle;
  free(request); /* the first member of its rest */
  if (status < 0)
    end(stream);
  else
    uv_read_start(stream, offer, got);
}

/* What the socket does not take now is kept, and a peer that does not read is not read from. */
static int write_later(uv_stream_t* stream, const char* from, size_t size) {
  struct rest* r = malloc(sizeof(*r) + size);
  if (r == NULL) return UV_ENOMEM;
  memcpy(r->bytes, from, size);
  const uv_buf_t out = uv_buf_init(r->bytes, (unsigned)size);
  const int failed = uv_write(&r->request, stream, &out, 1, written);
  if (failed < 0)
    free(r);
  else
    uv_read_stop(stream);
  return failed;
}

static void got(uv_stream_t* stream, ssize_t size, const uv_buf_t* from) {
  int sent = 0;
  if (size > 0) {
    const uv_buf_t out = uv_buf_init(from->base, (unsigned)size);
    sent = uv_try_write(stream, &out, 1);
    if (sent == UV_EAGAIN) sent = 0;
    if (sent >= 0 && sent < size)
      sent = write_later(stream, from->base + sent, (size_t)(size - sent));
  }
  if (size < 0 || sent < 0) end(stream);
}

static void incoming(uv_stream_t* listener, int status) {
  if (status < 0) return;
  uv_tcp_t* stream = malloc(sizeof(*stream));
  if (stream == NULL) return;
  check(uv_tcp_init(listener->loop, stream), "uv_tcp_init");
  if (uv_accept(listener, (uv_stream_t*)stream) < 0)
    end((uv_stream_t*)stream);
  else
    uv_read_start((uv_stream_t*)stream, offer, got);
}

int main(void) {
  uv_loop_t* loop = uv_default_loop();
  uv_tcp_t listener;
  check(uv_tcp_init(loop, &listener), "uv_tcp_init");
  check(uv_tcp_open(&listener, listen_on_loopback("uv_echo")), "uv_tcp_open");
  check(uv_listen((uv_stream_t*)&listener, SOMAXCONN, incoming), "uv_listen");
  return uv_run(loop, UV_RUN_DEFAULT);
}
