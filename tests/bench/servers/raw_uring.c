/* The leanest echo we know on io_uring: multishot accept and receive, a ring of provided buffers, one
 * io_uring_enter for each turn.
 *
 *   raw_uring [call|sqe]
 *
 * call  sends by a plain non-blocking send(2), and by the ring only what the socket did not take
 * sqe   sends by the ring
 *
 * What a connection is sent waits in the buffers it was received in, in order. One whose peer does
 * not read may hold `quota` of them: then its receiving is cancelled until they have been sent.
 */
#define _GNU_SOURCE
#include "listen.h"

#include <errno.h>
#include <liburing.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>

enum {
  entries = 256,
  completions = 4096,
  buffer_count = 256, /* a power of two */
  buffer_bytes = 16 * 1024,
  /* A stride of whole pages would put the beginnings of all buffers into the same cache lines. */
  buffer_stride = buffer_bytes + 192,
  quota = 16,
  none = -1
};

enum kind { accepting, receiving, sending, cancelling };

struct connection {
  int first, last; /* buffers to be sent, in order; `first` is in the kernel when `sends` */
  int held;
  bool receives, sends, ended;
};

static struct io_uring ring;
static struct io_uring_buf_ring* provided;
static int returned; /* buffers put into `provided` that the kernel has not been told of */
static char* buffers;
static int next_of[buffer_count];
static unsigned begin_of[buffer_count], end_of[buffer_count];
static struct connection* connections; /* by descriptor */
static bool send_by_ring;

static char* buffer(int id) { return buffers + (size_t)id * buffer_stride; }

static void give_back(int id) {
  io_uring_buf_ring_add(provided, buffer(id), buffer_bytes, (unsigned short)id,
                        io_uring_buf_ring_mask(buffer_count), returned++);
}

static void tell_of_buffers(void) {
  if (returned == 0) return;
  io_uring_buf_ring_advance(provided, returned);
  returned = 0;
}

static uint64_t tag(enum kind what, int fd) { return (uint64_t)what << 32 | (uint32_t)fd; }

static struct io_uring_sqe* new_entry(enum kind what, int fd) {
  struct io_uring_sqe* sqe = io_uring_get_sqe(&ring);
  if (sqe == NULL) {
    tell_of_buffers();
    io_uring_submit(&ring);
    sqe = io_uring_get_sqe(&ring);
    if (sqe == NULL) die("raw_uring: no entry");
  }
  sqe->user_data = tag(what, fd); /* which io_uring_prep_... leave alone */
  return sqe;
}

static void start_accepting(int listener) {
  struct io_uring_sqe* sqe = new_entry(accepting, listener);
  io_uring_prep_multishot_accept(sqe, listener, NULL, NULL, SOCK_CLOEXEC);
}

static void start_receiving(int fd) {
  struct io_uring_sqe* sqe = new_entry(receiving, fd);
  io_uring_prep_recv_multishot(sqe, fd, NULL, 0, 0);
  sqe->flags |= IOSQE_BUFFER_SELECT;
  sqe->buf_group = 0;
  connections[fd].receives = true;
}

static void start_sending(int fd) {
  struct connection* c = &connections[fd];
  struct io_uring_sqe* sqe = new_entry(sending, fd);
  const int id = c->first;
  io_uring_prep_send(sqe, fd, buffer(id) + begin_of[id], end_of[id] - begin_of[id], MSG_NOSIGNAL);
  c->sends = true;
}

static void stop_receiving(int fd) {
  struct io_uring_sqe* sqe = new_entry(cancelling, fd);
  io_uring_prep_cancel64(sqe, tag(receiving, fd), 0);
}

static void drop_first(struct connection* c) {
  give_back(c->first);
  c->first = next_of[c->first];
  --c->held;
}

static void close_if_done(int fd) {
  struct connection* c = &connections[fd];
  if (c->ended && !c->receives && !c->sends && c->held == 0) close(fd);
}

static void broke(int fd) {
  struct connection* c = &connections[fd];
  while (c->held > 0) drop_first(c);
  c->ended = true;
  if (c->receives) shutdown(fd, SHUT_RDWR); /* which ends the receiving */
}

static void accepted(int listener, int fd, unsigned flags) {
  if ((flags & IORING_CQE_F_MORE) == 0) start_accepting(listener);
  if (fd < 0) return;
  connections[fd] = (struct connection){.first = none, .last = none};
  start_receiving(fd);
}

static void keep(struct connection* c, int id, unsigned begin, unsigned end) {
  begin_of[id] = begin;
  end_of[id] = end;
  next_of[id] = none;
  if (c->held++ == 0)
    c->first = id;
  else
    next_of[c->last] = id;
  c->last = id;
}

static void received(int fd, int size, unsigned flags) {
  struct connection* c = &connections[fd];
  if ((flags & IORING_CQE_F_MORE) == 0) c->receives = false;
  if (size > 0) {
    const int id = (int)(flags >> IORING_CQE_BUFFER_SHIFT);
    ssize_t sent = 0;
    if (c->ended) {
      give_back(id);
    } else if (c->held == 0) {
      if (!send_by_ring) {
        sent = send(fd, buffer(id), (size_t)size, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (sent < 0) sent = 0; /* what is wrong, the ring will say */
      }
      if (sent == size) {
        give_back(id);
      } else {
        keep(c, id, (unsigned)sent, (unsigned)size);
        start_sending(fd);
      }
    } else {
      keep(c, id, 0, (unsigned)size);
      if (c->held == quota && c->receives) stop_receiving(fd);
    }
  } else if (size != -ENOBUFS && size != -ECANCELED) {
    c->ended = true;
  }
  if (!c->receives && !c->ended && c->held < quota) start_receiving(fd);
  close_if_done(fd);
}

static void sent(int fd, int size) {
  struct connection* c = &connections[fd];
  c->sends = false;
  if (size < 0) {
    broke(fd);
  } else {
    begin_of[c->first] += (unsigned)size;
    if (begin_of[c->first] == end_of[c->first]) drop_first(c);
    if (c->held > 0)
      start_sending(fd);
    else if (!c->receives && !c->ended)
      start_receiving(fd);
  }
  close_if_done(fd);
}

static void set_up_buffers(void) {
  struct io_uring_buf_reg reg = {.ring_entries = buffer_count, .bgid = 0};
  const size_t ring_bytes = buffer_count * sizeof(struct io_uring_buf);
  const size_t bytes = (size_t)buffer_count * buffer_stride;
  provided = mmap(NULL, ring_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  /* In memory from the start: the first messages shall cost what all the others do. */
  buffers =
      mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
  if (provided == MAP_FAILED || buffers == MAP_FAILED) die("mmap");
  io_uring_buf_ring_init(provided);
  reg.ring_addr = (uint64_t)(uintptr_t)provided;
  if ((errno = -io_uring_register_buf_ring(&ring, &reg, 0)) != 0) die("io_uring_register_buf_ring");
  for (int id = 0; id < buffer_count; ++id) give_back(id);
  tell_of_buffers();
}

int main(int argc, char** argv) {
  struct io_uring_params params = {
      .flags = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_SUBMIT_ALL |
               IORING_SETUP_CQSIZE,
      .cq_entries = completions,
  };
  send_by_ring = argc > 1 && strcmp(argv[1], "sqe") == 0;
  connections = calloc(descriptors_max(), sizeof(*connections));
  if (connections == NULL) die("calloc");
  if ((errno = -io_uring_queue_init_params(entries, &ring, &params)) != 0) die("io_uring_setup");
  io_uring_register_ring_fd(&ring);
  set_up_buffers();
  start_accepting(listen_on_loopback("raw_uring"));
  for (;;) {
    struct io_uring_cqe* cqe;
    unsigned head, count = 0;
    tell_of_buffers();
    io_uring_submit_and_wait(&ring, 1);
    io_uring_for_each_cqe(&ring, head, cqe) {
      const int fd = (int)(uint32_t)cqe->user_data;
      ++count;
      switch ((enum kind)(cqe->user_data >> 32)) {
        case accepting:
          accepted(fd, cqe->res, cqe->flags);
          break;
        case receiving:
          received(fd, cqe->res, cqe->flags);
          break;
        case sending:
          sent(fd, cqe->res);
          break;
        case cancelling:
          break;
      }
    }
    io_uring_cq_advance(&ring, count);
  }
}
