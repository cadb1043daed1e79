#include <coax/net/endpoint.hpp>

#include "../catch.hpp"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <random>
#include <string>
#include <string_view>
#include <system_error>
#include <type_traits>
#include <vector>

#include <arpa/inet.h>
#include <net/if.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

namespace {

using coax::endpoint;
using namespace std::literals;

constexpr auto path_offset = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path));

const sockaddr* generic(const auto& address) { return reinterpret_cast<const sockaddr*>(&address); }

/// A Unix address as the kernel would give it: `bytes` in sun_path, and no more.
endpoint unix_from(std::string_view bytes) {
  sockaddr_un address{};
  std::memset(&address, 0x5a, sizeof address);  // what lies behind must not count
  address.sun_family = AF_UNIX;
  bytes.copy(address.sun_path, sizeof address.sun_path);
  const auto size = path_offset + static_cast<socklen_t>(bytes.size());
  return endpoint::from_sockaddr(generic(address), size);
}

endpoint ipv6_from(std::string_view text, std::uint16_t port, std::uint32_t scope,
                   std::uint32_t flow = 0) {
  sockaddr_in6 address{};
  address.sin6_family = AF_INET6;
  address.sin6_port = htons(port);
  address.sin6_scope_id = scope;
  address.sin6_flowinfo = htonl(flow);
  REQUIRE(::inet_pton(AF_INET6, std::string(text).c_str(), &address.sin6_addr) == 1);
  return endpoint::from_sockaddr(generic(address), sizeof address);
}

/// What the kernel says `fd` is bound to.
endpoint bound(int fd) {
  sockaddr_storage address{};
  socklen_t size = sizeof address;
  REQUIRE(::getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size) == 0);
  return endpoint::from_sockaddr(generic(address), size);
}

struct socket_fd {
  explicit socket_fd(int family) : fd(::socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0)) {}
  socket_fd(const socket_fd&) = delete;
  socket_fd& operator=(const socket_fd&) = delete;
  ~socket_fd() { ::close(fd); }

  const int fd;
};

class random_endpoints {
 public:
  endpoint next() {
    switch (below(3)) {
      case 0:
        return ipv4();
      case 1:
        return ipv6();
      default:
        return unix_socket();
    }
  }

  std::uint64_t below(std::uint64_t limit) { return generator_() % limit; }
  char byte() { return static_cast<char>(below(256)); }

 private:
  endpoint ipv4() {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = static_cast<in_port_t>(below(65536));
    address.sin_addr.s_addr = static_cast<in_addr_t>(generator_());
    return endpoint::from_sockaddr(generic(address), sizeof address);
  }

  endpoint ipv6() {
    sockaddr_in6 address{};
    address.sin6_family = AF_INET6;
    address.sin6_port = static_cast<in_port_t>(below(65536));
    // long runs of zeros, and addresses that hold one of IPv4, are the forms that differ in text
    const auto zeros = below(17);
    for (std::size_t i = 0; i < 16; ++i) {
      const auto random = static_cast<std::uint8_t>(below(256));
      address.sin6_addr.s6_addr[i] = i < zeros ? std::uint8_t{0} : random;
    }
    if (zeros == 12 && below(2) == 0) {
      address.sin6_addr.s6_addr[10] = address.sin6_addr.s6_addr[11] = 0xff;
    }
    if (below(2) == 0) address.sin6_scope_id = static_cast<std::uint32_t>(below(8));
    if (below(8) == 0) address.sin6_scope_id = static_cast<std::uint32_t>(generator_());
    if (below(2) == 0) address.sin6_flowinfo = static_cast<std::uint32_t>(generator_());
    return endpoint::from_sockaddr(generic(address), sizeof address);
  }

  endpoint unix_socket() {
    const bool abstract = below(2) == 0;
    std::string bytes = abstract ? std::string(1, '\0') : "";
    const auto length = 1 + below(107);
    for (std::uint64_t i = 0; i < length; ++i) {
      char some = byte();
      while (some == '\0' || (some == '@' && bytes.empty())) some = byte();
      bytes += some;
    }
    return unix_from(abstract ? bytes : bytes + '\0');
  }

  std::mt19937_64 generator_{20240607};
};

struct bad_input {
  std::string text;
  std::error_code error;
};

}  // namespace

static_assert(std::is_trivially_copyable_v<endpoint>);
static_assert(std::is_trivially_destructible_v<endpoint>);
static_assert(std::is_trivially_destructible_v<coax::result<endpoint>>);
static_assert(sizeof(endpoint) <= 116);

TEST_CASE("an endpoint is unspecified until it is given an address", "[endpoint]") {
  const endpoint none;
  CHECK(none.family() == AF_UNSPEC);
  CHECK(none.size() == 0);
  CHECK(none.port() == 0);
  CHECK_FALSE(none.is_unix());
  CHECK(none.to_string() == "unspecified");
  CHECK(none == endpoint());
}

TEST_CASE("parse reads IPv4 with a port", "[endpoint]") {
  const auto made = endpoint::parse("127.0.0.1:9000");
  REQUIRE(made);
  CHECK(made->family() == AF_INET);
  CHECK(made->port() == 9000);
  CHECK_FALSE(made->is_unix());
  CHECK(made->to_string() == "127.0.0.1:9000");
  REQUIRE(made->size() == sizeof(sockaddr_in));
  sockaddr_in address{};
  std::memcpy(&address, made->data(), sizeof address);
  CHECK(address.sin_family == AF_INET);
  CHECK(ntohl(address.sin_addr.s_addr) == INADDR_LOOPBACK);
  CHECK(ntohs(address.sin_port) == 9000);
}

TEST_CASE("parse reads IPv6 in brackets", "[endpoint]") {
  const auto made = endpoint::parse("[2001:db8::7]:443");
  REQUIRE(made);
  CHECK(made->family() == AF_INET6);
  CHECK(made->size() == sizeof(sockaddr_in6));
  CHECK(made->port() == 443);
  CHECK(*made == ipv6_from("2001:db8::7", 443, 0));
  CHECK(made->to_string() == "[2001:db8::7]:443");
  CHECK(endpoint::parse("[::1]:0").value().to_string() == "[::1]:0");
  CHECK(endpoint::parse("[::]:65535").value().port() == 65535);
  CHECK(endpoint::parse("[0:0:0:0:0:0:0:1]:1").value() == endpoint::parse("[::1]:1").value());
  CHECK(endpoint::parse("[::ffff:1.2.3.4]:1").value().to_string() == "[::ffff:1.2.3.4]:1");
}

TEST_CASE("parse reads the scope of IPv6 as a name or a number", "[endpoint]") {
  const auto loopback = ::if_nametoindex("lo");
  REQUIRE(loopback != 0);
  const auto by_name = endpoint::parse("[fe80::1%lo]:80");
  REQUIRE(by_name);
  CHECK(*by_name == ipv6_from("fe80::1", 80, loopback));
  CHECK(by_name->to_string() == "[fe80::1%lo]:80");

  const auto by_number = endpoint::parse("[fe80::1%" + std::to_string(loopback) + "]:80");
  REQUIRE(by_number);
  CHECK(*by_number == *by_name);

  const auto unnamed = endpoint::parse("[fe80::1%4000000000]:80");
  REQUIRE(unnamed);
  CHECK(*unnamed == ipv6_from("fe80::1", 80, 4000000000));
  CHECK(unnamed->to_string() == "[fe80::1%4000000000]:80");
}

TEST_CASE("parse reads the path of a Unix socket", "[endpoint]") {
  const auto made = endpoint::parse("unix:/run/x");
  REQUIRE(made);
  CHECK(made->is_unix());
  CHECK(made->family() == AF_UNIX);
  CHECK(made->port() == 0);
  CHECK(made->size() == path_offset + "/run/x"sv.size() + 1);
  CHECK(made->to_string() == "unix:/run/x");
  CHECK(*made == unix_from("/run/x\0"sv));
  CHECK(endpoint::parse("unix:here").value().to_string() == "unix:here");
  CHECK(endpoint::parse("unix:/with space:80").value().to_string() == "unix:/with space:80");
}

TEST_CASE("parse reads a name in the abstract namespace", "[endpoint]") {
  const auto made = endpoint::parse("unix:@abstract");
  REQUIRE(made);
  CHECK(made->is_unix());
  CHECK(made->size() == path_offset + 1 + "abstract"sv.size());
  CHECK(*made == unix_from("\0abstract"sv));
  CHECK(made->to_string() == "unix:@abstract");
  CHECK(*made != endpoint::parse("unix:abstract").value());
}

TEST_CASE("a Unix path may take 107 bytes and no more", "[endpoint]") {
  const std::string longest(107, 'x');
  for (const auto* kind : {"unix:", "unix:@"}) {
    const auto made = endpoint::parse(kind + longest);
    REQUIRE(made);
    CHECK(made->size() == sizeof(sockaddr_un));
    CHECK(made->to_string() == kind + longest);
    CHECK(endpoint::parse(kind + longest + 'x').error() == coax::errc::path_too_long);
  }
}

TEST_CASE("bad text gets the error that tells what is wrong with it", "[endpoint]") {
  using coax::errc;
  const std::vector<bad_input> table = {
      {"", errc::bad_address},
      {":", errc::bad_address},
      {":80", errc::bad_address},
      {"80", errc::bad_address},
      {"localhost", errc::bad_address},
      {"localhost:80", errc::bad_address},
      {"example.com:http", errc::bad_address},
      {"*:80", errc::bad_address},
      {" 127.0.0.1:80", errc::bad_address},
      {"127.0.0.1 :80", errc::bad_address},
      {"127.0.0.1\0:80"s, errc::bad_address},
      {"127.1:80", errc::bad_address},
      {"2130706433:80", errc::bad_address},
      {"0x7f.0.0.1:80", errc::bad_address},
      {"0177.0.0.1:80", errc::bad_address},
      {"127.0.0.256:80", errc::bad_address},
      {"127.0.0.1.:80", errc::bad_address},
      {"127.0.0.1.1:80", errc::bad_address},
      {"127.0.0.1%lo:80", errc::bad_address},
      {"1234.1234.1234.1234.1234:80", errc::bad_address},
      {"::1", errc::bad_address},
      {"::1:80", errc::bad_address},
      {"fe80::1:80", errc::bad_address},
      {"[", errc::bad_address},
      {"]", errc::bad_address},
      {"[]", errc::bad_address},
      {"[]:80", errc::bad_address},
      {"[::1", errc::bad_address},
      {"[::1:80", errc::bad_address},
      {"[::1]80", errc::bad_address},
      {"[::1] :80", errc::bad_address},
      {"[::1]]:80", errc::bad_address},
      {"[[::1]]:80", errc::bad_address},
      {"[::1 ]:80", errc::bad_address},
      {"[::1\0]:80"s, errc::bad_address},
      {"[127.0.0.1]:80", errc::bad_address},
      {"[localhost]:80", errc::bad_address},
      {"[1:2:3:4:5:6:7:8:9]:80", errc::bad_address},
      {"[1::2::3]:80", errc::bad_address},
      {"[12345::]:80", errc::bad_address},
      {"[fe80::1%]:80", errc::bad_address},
      {"[fe80::1%lo\0]:80"s, errc::bad_address},
      {"[fe80::1%lo:1]:80", errc::bad_address},
      {"[%lo]:80", errc::bad_address},
      {"[fe80::1%0]:80", std::make_error_code(std::errc::no_such_device)},
      {"[fe80::1%no-such-if]:80", std::make_error_code(std::errc::no_such_device)},
      {"[fe80::1%4294967296]:80", std::make_error_code(std::errc::no_such_device)},
      {"[fe80::1%-2]:80", std::make_error_code(std::errc::no_such_device)},
      {"[fe80::1%2 ]:80", std::make_error_code(std::errc::no_such_device)},
      {"[fe80::1%a-name-beyond-all-limits]:80", std::make_error_code(std::errc::no_such_device)},
      {"127.0.0.1", errc::bad_port},
      {"127.0.0.1:", errc::bad_port},
      {"127.0.0.1:65536", errc::bad_port},
      {"127.0.0.1:99999999999999999999", errc::bad_port},
      {"127.0.0.1:-1", errc::bad_port},
      {"127.0.0.1:+80", errc::bad_port},
      {"127.0.0.1: 80", errc::bad_port},
      {"127.0.0.1:80 ", errc::bad_port},
      {"127.0.0.1:80\n", errc::bad_port},
      {"127.0.0.1:80\0"s, errc::bad_port},
      {"127.0.0.1:0x50", errc::bad_port},
      {"127.0.0.1:80:90", errc::bad_port},
      {"127.0.0.1::80", errc::bad_port},
      {"127.0.0.1:http", errc::bad_port},
      {"[::1]", errc::bad_port},
      {"[::1]:", errc::bad_port},
      {"[::1]:65536", errc::bad_port},
      {"[::1]:80x", errc::bad_port},
      {"unix", errc::bad_address},
      {"unix:", errc::bad_address},
      {"unix:@", errc::bad_address},
      {"UNIX:/run/x", errc::bad_address},
      {" unix:/run/x", errc::bad_address},
      {"/run/x", errc::bad_address},
      {"@abstract", errc::bad_address},
      {"unix:/run/x\0"s, errc::bad_address},
      {"unix:\0abstract"s, errc::bad_address},
      {"unix:@a\0b"s, errc::bad_address},
      {"unix:" + std::string(108, 'x'), errc::path_too_long},
      {"unix:@" + std::string(108, 'x'), errc::path_too_long},
      {"unix:" + std::string(100'000, 'x'), errc::path_too_long},
  };
  for (const auto& [text, error] : table) {
    CAPTURE(text);
    const auto made = endpoint::parse(text);
    CHECK_FALSE(made);
    // by condition: what the kernel said has the category of the system
    CHECK(made.error().default_error_condition() == error.default_error_condition());
  }
}

TEST_CASE("ip takes an address without brackets and a port beside it", "[endpoint]") {
  CHECK(endpoint::ip("0.0.0.0", 9000).value() == endpoint::parse("0.0.0.0:9000").value());
  CHECK(endpoint::ip("::1", 65535).value() == endpoint::parse("[::1]:65535").value());
  CHECK(endpoint::ip("fe80::1%lo", 0).value() == endpoint::parse("[fe80::1%lo]:0").value());
  for (const auto text : {""sv, "[::1]"sv, "127.0.0.1:80"sv, "localhost"sv, "127.1"sv, " ::1"sv,
                          "::1%"sv, "unix:/run/x"sv, "127.0.0.1\0"sv, "::1\0"sv}) {
    CAPTURE(text);
    CHECK(endpoint::ip(text, 80).error() == coax::errc::bad_address);
  }
}

TEST_CASE("an address from the kernel reads back", "[endpoint]") {
  for (const auto* text : {"127.0.0.1:0", "[::1]:0"}) {
    const auto wanted = endpoint::parse(text).value();
    const socket_fd made(wanted.family());
    if (made.fd < 0 || ::bind(made.fd, wanted.data(), wanted.size()) != 0) {
      WARN("no " << text << " on this machine: " << std::system_category().message(errno));
      continue;
    }
    const auto given = bound(made.fd);
    CHECK(given.port() != 0);
    CHECK(given.size() == wanted.size());
    CHECK(endpoint::parse(given.to_string()).value() == given);
    CHECK(endpoint::ip(given.family() == AF_INET ? "127.0.0.1" : "::1", given.port()).value() ==
          given);
  }
}

TEST_CASE("a Unix address from the kernel reads back", "[endpoint]") {
  const socket_fd unnamed(AF_UNIX);
  CHECK(bound(unnamed.fd).is_unix());
  CHECK(bound(unnamed.fd).size() == sizeof(sa_family_t));
  CHECK(bound(unnamed.fd).to_string() == "unix:");
  CHECK(bound(unnamed.fd) == bound(unnamed.fd));
  CHECK(bound(unnamed.fd) != endpoint());

  const auto name = "unix:@coax endpoint_test " + std::to_string(::getpid());
  const auto wanted = endpoint::parse(name).value();
  const socket_fd abstract(AF_UNIX);
  REQUIRE(::bind(abstract.fd, wanted.data(), wanted.size()) == 0);
  CHECK(bound(abstract.fd) == wanted);
  CHECK(bound(abstract.fd).to_string() == name);

  const socket_fd automatic(AF_UNIX);  // the kernel picks an abstract name
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  REQUIRE(::bind(automatic.fd, generic(address), sizeof(sa_family_t)) == 0);
  const auto picked = bound(automatic.fd);
  CHECK(picked.to_string().starts_with("unix:@"));
  CHECK(endpoint::parse(picked.to_string()).value() == picked);
}

TEST_CASE("a Unix path bound to a file reads back", "[endpoint]") {
  std::string directory = "/tmp/coax-XXXXXX";
  REQUIRE(::mkdtemp(directory.data()) != nullptr);
  // the longest that parse takes, and one byte beyond: bind(2) takes 108 bytes without a NUL, and
  // getsockname(2) then gives a size that is larger than a sockaddr_un
  for (const std::size_t length : {std::size_t{30}, std::size_t{107}, std::size_t{108}}) {
    const auto path = directory + '/' + std::string(length - directory.size() - 1, 'x');
    const auto wanted = unix_from(path);
    CHECK(wanted.to_string() == "unix:" + path);
    const socket_fd made(AF_UNIX);
    REQUIRE(::bind(made.fd, wanted.data(), wanted.size()) == 0);
    CHECK(bound(made.fd) == wanted);
    CHECK(bound(made.fd).to_string() == "unix:" + path);
    CHECK(endpoint::parse("unix:" + path).error() ==
          (length == 108 ? make_error_code(coax::errc::path_too_long) : std::error_code()));
    CHECK(::unlink(path.c_str()) == 0);
  }
  CHECK(::rmdir(directory.c_str()) == 0);
}

TEST_CASE("the size a caller gives a Unix path does not make it another", "[endpoint]") {
  const auto exact = unix_from("/run/x\0"sv);
  CHECK(unix_from("/run/x"sv) == exact);
  CHECK(unix_from("/run/x\0\0\0\0"sv) == exact);
  CHECK(unix_from("/run/x\0junk"sv) == exact);
  // in an abstract name every byte counts
  CHECK(unix_from("\0x"sv) != unix_from("\0x\0"sv));
  CHECK(unix_from("\0x\0"sv).to_string() == "unix:@x\0"s);
}

TEST_CASE("a file whose name begins with @ is not taken for an abstract name", "[endpoint]") {
  const auto file = unix_from("@x\0"sv);
  CHECK(file.to_string() == "unix:./@x");
  CHECK(file != endpoint::parse("unix:@x").value());
}

TEST_CASE("an address cut short is unspecified", "[endpoint]") {
  const auto inet = endpoint::parse("127.0.0.1:80").value();
  const auto inet6 = endpoint::parse("[::1]:80").value();
  CHECK(endpoint::from_sockaddr(nullptr, 0) == endpoint());
  CHECK(endpoint::from_sockaddr(inet.data(), 0) == endpoint());
  CHECK(endpoint::from_sockaddr(inet.data(), 1) == endpoint());
  CHECK(endpoint::from_sockaddr(inet.data(), sizeof(sockaddr_in) - 1) == endpoint());
  CHECK(endpoint::from_sockaddr(inet6.data(), sizeof(sockaddr_in6) - 1) == endpoint());
}

TEST_CASE("an address in a larger buffer keeps its own size", "[endpoint]") {
  for (const auto* text : {"127.0.0.1:80", "[::1]:80"}) {
    const auto made = endpoint::parse(text).value();
    sockaddr_storage storage{};
    std::memset(&storage, 0x5a, sizeof storage);
    std::memcpy(&storage, made.data(), made.size());
    CHECK(endpoint::from_sockaddr(generic(storage), sizeof storage) == made);
    CHECK(endpoint::from_sockaddr(generic(storage), sizeof storage).size() == made.size());
  }
}

TEST_CASE("an address of another family is kept and named", "[endpoint]") {
  sockaddr_storage storage{};
  storage.ss_family = AF_NETLINK;
  const auto made = endpoint::from_sockaddr(generic(storage), 12);
  CHECK(made.family() == AF_NETLINK);
  CHECK(made.size() == 12);
  CHECK(made.port() == 0);
  CHECK(made.to_string() == "family " + std::to_string(AF_NETLINK));
  CHECK_FALSE(endpoint::parse(made.to_string()));
}

TEST_CASE("endpoints are equal when they name the same socket", "[endpoint]") {
  const auto one = endpoint::parse("127.0.0.1:80").value();
  CHECK(one == endpoint::parse("127.0.0.1:80").value());
  CHECK(one != endpoint::parse("127.0.0.1:81").value());
  CHECK(one != endpoint::parse("127.0.0.2:80").value());
  CHECK(one != endpoint::parse("[::ffff:127.0.0.1]:80").value());
  CHECK(one != endpoint());
  CHECK(ipv6_from("fe80::1", 80, 2) != ipv6_from("fe80::1", 80, 3));
  CHECK(ipv6_from("fe80::1", 80, 2) == ipv6_from("fe80::1", 80, 2, 12345));

  sockaddr_in padded{};
  std::memset(&padded, 0x5a, sizeof padded);
  padded.sin_family = AF_INET;
  padded.sin_port = htons(80);
  padded.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  CHECK(endpoint::from_sockaddr(generic(padded), sizeof padded) == one);
}

TEST_CASE("what to_string writes, parse reads back", "[endpoint]") {
  random_endpoints random;
  for (int i = 0; i < 20'000; ++i) {
    const auto made = random.next();
    const auto text = made.to_string();
    const auto again = endpoint::parse(text);
    if (again && *again == made && again->to_string() == text) continue;
    CAPTURE(i, text);
    FAIL("does not come back: " << again.error().message());
  }
}

TEST_CASE("text that was tampered with is refused or understood, and never crashes", "[endpoint]") {
  random_endpoints random;
  constexpr auto telling = "0123456789abcdef:.[]%@/- unixlo\0\n"sv;
  int understood = 0;
  for (int i = 0; i < 20'000; ++i) {
    auto text = random.next().to_string();
    for (auto edits = 1 + random.below(3); edits != 0; --edits) {
      const auto at = random.below(text.size() + 1);
      const char some =
          random.below(2) == 0 ? random.byte() : telling[random.below(telling.size())];
      switch (random.below(4)) {
        case 0:
          text.insert(at, 1, some);
          break;
        case 1:
          text.erase(at, 1 + random.below(4));
          break;
        case 2:
          if (at < text.size()) text[at] = some;
          break;
        default:
          text.insert(at, text.substr(random.below(text.size() + 1), random.below(16)));
      }
    }
    const auto made = endpoint::parse(text);
    if (!made) {
      if (!made.error().message().empty()) continue;
      FAIL("an error without a message for " << text);
    }
    ++understood;
    const auto again = endpoint::parse(made->to_string());
    if (again && *again == *made) continue;
    CAPTURE(i, text);
    FAIL("does not come back");
  }
  CHECK(understood > 1'000);
}

TEST_CASE("random bytes as text and as an address never crash", "[endpoint]") {
  random_endpoints random;
  for (int i = 0; i < 20'000; ++i) {
    // exact heap buffers, so that the address sanitizer sees a read beyond their end
    std::vector<char> bytes(random.below(160));
    std::generate(bytes.begin(), bytes.end(), [&] { return random.byte(); });
    if (const auto made = endpoint::parse({bytes.data(), bytes.size()})) {
      CHECK(endpoint::parse(made->to_string()).value() == *made);
    }

    if (bytes.size() < sizeof(sa_family_t)) continue;
    constexpr std::array<sa_family_t, 5> families = {AF_UNSPEC, AF_INET, AF_INET6, AF_UNIX, 999};
    const auto family = families[random.below(families.size())];
    std::memcpy(bytes.data(), &family, sizeof family);
    const auto made = endpoint::from_sockaddr(reinterpret_cast<const sockaddr*>(bytes.data()),
                                              static_cast<socklen_t>(bytes.size()));
    if (made != endpoint::from_sockaddr(made.data(), made.size())) FAIL("not the same address");
    if (made.to_string().empty()) FAIL("an endpoint without a text");
  }
}
