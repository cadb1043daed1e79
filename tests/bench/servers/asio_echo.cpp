// The echo on Asio's epoll reactor, one thread, with callbacks: its fastest form.

#include "listen.h"

#include <asio.hpp>

#include <array>
#include <cstddef>
#include <memory>
#include <utility>

using tcp = asio::ip::tcp;

class session : public std::enable_shared_from_this<session> {
 public:
  explicit session(tcp::socket socket) : socket_(std::move(socket)) {}

  void read() {
    socket_.async_read_some(asio::buffer(buffer_),
                            [self = shared_from_this()](std::error_code failed, std::size_t size) {
                              if (!failed) self->write(size);
                            });
  }

 private:
  void write(std::size_t size) {
    asio::async_write(socket_, asio::buffer(buffer_, size),
                      [self = shared_from_this()](std::error_code failed, std::size_t) {
                        if (!failed) self->read();
                      });
  }

  tcp::socket socket_;
  std::array<std::byte, 16 * 1024> buffer_;
};

void accept(tcp::acceptor& acceptor) {
  acceptor.async_accept([&acceptor](std::error_code failed, tcp::socket socket) {
    if (!failed) std::make_shared<session>(std::move(socket))->read();
    accept(acceptor);
  });
}

int main() {
  asio::io_context context(ASIO_CONCURRENCY_HINT_UNSAFE);
  tcp::acceptor acceptor(context, tcp::v4(), listen_on_loopback("asio_echo"));
  accept(acceptor);
  context.run();
}
