// Endpoints from any text, and from any bytes a kernel might give: no text breaks the parser, what
// it refuses it refuses with an error that is documented, and what it takes survives being printed.

#include "require.hpp"

#include <coax/net/endpoint.hpp>

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <system_error>
#include <vector>

#include <sys/socket.h>

namespace {

using coax::endpoint;
using coax::result;

void is_documented(const std::error_code& why) {
  require(why == coax::errc::bad_address || why == coax::errc::bad_port ||
              why == coax::errc::path_too_long || why == std::errc::no_such_device,
          "an error of the parser is one that it documents");
}

void is_well_formed(const endpoint& e) {
  require(e.family() == AF_INET || e.family() == AF_INET6 || e.family() == AF_UNIX,
          "what is parsed has a family");
  require(endpoint::from_sockaddr(e.data(), e.size()) == e,
          "the form the kernel takes is the same endpoint");
  require(!e.is_unix() || e.port() == 0, "a path has no port");
}

/// What `e` prints is read as `e` again.
void survives_printing(const endpoint& e) {
  const std::string printed = e.to_string();
  const result<endpoint> again = endpoint::parse(printed);
  require(again && *again == e, "what is printed is parsed to the same endpoint");
  require(again->to_string() == printed, "the same endpoint prints the same text");
}

void from_text(std::string_view text) {
  const result<endpoint> parsed = endpoint::parse(text);
  if (!parsed) return is_documented(parsed.error());
  is_well_formed(*parsed);
  survives_printing(*parsed);
}

void from_address(std::string_view text) {
  constexpr std::uint16_t port = 9000;
  const result<endpoint> made = endpoint::ip(text, port);
  if (!made) return is_documented(made.error());
  is_well_formed(*made);
  require(!made->is_unix() && made->port() == port, "an IP address gets the port it was given");
  survives_printing(*made);
}

/// The bytes of a kernel: most are no address, and what can be written is read again.
void from_kernel(std::string_view bytes) {
  const std::vector<char> exact(bytes.begin(), bytes.end());  // a byte too far is seen
  const auto size = static_cast<socklen_t>(exact.size());
  const auto* address = reinterpret_cast<const sockaddr*>(exact.data());
  const endpoint made = endpoint::from_sockaddr(address, size);
  require(made.size() <= sizeof(sockaddr_un), "an endpoint holds what it says it holds");
  require(made == made && made == endpoint(made), "an endpoint equals its copy");
  const std::string printed = made.to_string();
  const result<endpoint> again = endpoint::parse(printed);
  if (!again) return is_documented(again.error());
  require(again->to_string() == printed, "what is printed stays as it is");
  if (made.family() == AF_INET || made.family() == AF_INET6)
    require(*again == made, "an IP address of the kernel is read again");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  from_text(text);
  from_address(text);
  from_kernel(text);
  return 0;
}
