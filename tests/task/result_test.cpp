#include <coax/task/result.hpp>

#include "../catch.hpp"

#include <any>
#include <array>
#include <cerrno>
#include <csignal>
#include <cstddef>
#include <future>
#include <memory>
#include <optional>
#include <set>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <type_traits>
#include <utility>
#include <vector>

#include <sys/wait.h>
#include <unistd.h>

namespace {

using coax::result;

/// Counts what is done to it, over one test.
struct counted {
  explicit counted(int number) : value(number) { ++made; }
  counted(const counted& other) : value(other.value) { ++made, ++copied; }
  counted(counted&& other) noexcept : value(std::exchange(other.value, -1)) { ++made, ++moved; }
  counted& operator=(const counted& other) {
    value = other.value;
    ++copied;
    return *this;
  }
  counted& operator=(counted&& other) noexcept {
    value = std::exchange(other.value, -1);
    ++moved;
    return *this;
  }
  ~counted() { ++destroyed; }

  static void reset() { made = copied = moved = destroyed = 0; }
  static int alive() { return made - destroyed; }

  int value;
  static inline int made, copied, moved, destroyed;
};

/// Whose copy and move throw, when told to.
struct fragile {
  fragile() = default;
  fragile(const fragile& other) : armed(other.armed) {
    if (armed) throw std::runtime_error("fragile");
  }
  fragile& operator=(const fragile&) = default;

  bool armed = false;
};

std::error_code code_thrown_by(const auto& action) {
  try {
    action();
  } catch (const std::system_error& error) {
    return error.code();
  }
  return {};
}

result<int> half_of(int number) {
  if (number % 2 != 0) return std::errc::invalid_argument;
  return number / 2;
}

result<int> quarter_of(int number) {
  const auto half = half_of(number);
  if (!half) return half.error();
  return half_of(*half);
}

}  // namespace

static_assert(coax::is_result_v<result<int>>);
static_assert(coax::is_result_v<result<void>>);
static_assert(coax::is_result_v<const result<int>>);
static_assert(!coax::is_result_v<int>);
static_assert(!coax::is_result_v<std::error_code>);
static_assert(!coax::is_result_v<std::optional<int>>);

static_assert(std::is_trivially_destructible_v<result<std::size_t>>);
static_assert(std::is_trivially_copyable_v<result<std::size_t>>);
static_assert(std::is_trivially_destructible_v<result<void>>);
static_assert(!std::is_trivially_destructible_v<result<std::string>>);
static_assert(!std::is_copy_constructible_v<result<std::unique_ptr<int>>>);
static_assert(std::is_nothrow_move_constructible_v<result<std::unique_ptr<int>>>);

// a result is made on purpose: never from nothing, and never a bool or a number by the way
static_assert(!std::is_default_constructible_v<result<int>>);
static_assert(std::is_default_constructible_v<result<void>>);
static_assert(!std::is_convertible_v<result<int>, bool>);
static_assert(!std::is_convertible_v<result<void>, bool>);
static_assert(!std::is_convertible_v<result<int>, result<bool>>);
static_assert(!std::is_convertible_v<result<int>, result<void>>);
static_assert(!std::is_convertible_v<std::string, result<int>>);
static_assert(!std::is_convertible_v<std::size_t, result<std::vector<int>>>);
static_assert(std::is_convertible_v<const char*, result<std::string>>);
static_assert(std::is_convertible_v<std::errc, result<int>>);
static_assert(std::is_convertible_v<coax::errc, result<void>>);
static_assert(std::is_convertible_v<std::future_errc, result<int>>);

// what the accessors give
static_assert(std::is_same_v<decltype(*std::declval<result<int>&>()), int&>);
static_assert(std::is_same_v<decltype(*std::declval<const result<int>&>()), const int&>);
static_assert(std::is_same_v<decltype(*std::declval<result<int>>()), int&&>);
static_assert(std::is_same_v<decltype(std::declval<result<int>&>().value()), int&>);
static_assert(std::is_same_v<decltype(std::declval<const result<int>&>().value()), const int&>);
static_assert(std::is_same_v<decltype(std::declval<result<int>>().value()), int&&>);
static_assert(
    std::is_same_v<decltype(std::declval<const result<int>&>().operator->()), const int*>);
static_assert(std::is_same_v<decltype(std::declval<result<int>&>().operator->()), int*>);
static_assert(std::is_same_v<decltype(*std::declval<result<void>&>()), void>);

TEST_CASE("a result holds the value it was made from", "[result]") {
  const result<std::string> text = "hello";
  REQUIRE(text);
  CHECK(*text == "hello");
  CHECK(text->size() == 5);
  CHECK(text.value() == "hello");
  CHECK_FALSE(text.error());
}

TEST_CASE("a result holds the error it was made from", "[result]") {
  const result<int> from_code = std::error_code(ECONNRESET, std::system_category());
  CHECK_FALSE(from_code);
  CHECK(from_code.error() == std::errc::connection_reset);
  CHECK(from_code.error().category() == std::system_category());

  const result<int> from_errc = std::errc::timed_out;
  CHECK_FALSE(from_errc);
  CHECK(from_errc.error() == std::errc::timed_out);
  CHECK(from_errc.error() != std::errc::connection_reset);

  const result<int> from_own = coax::errc::end_of_stream;
  CHECK_FALSE(from_own);
  CHECK(from_own.error() == coax::errc::end_of_stream);
  CHECK(from_own.error() != coax::errc::transfer_cut);
  // the numbers agree (EPERM is 1), the meanings do not
  CHECK(from_own.error() != std::errc::operation_not_permitted);
}

TEST_CASE("an error is handed on through results of other types", "[result]") {
  CHECK(*quarter_of(12) == 3);
  CHECK(quarter_of(6).error() == std::errc::invalid_argument);
  CHECK(quarter_of(3).error() == std::errc::invalid_argument);
}

TEST_CASE("what value throws says where it was called", "[result]") {
  const auto said = [](const auto& r) {
    try {
      (void)r.value();
    } catch (const std::system_error& error) {
      return std::string(error.what());
    }
    return std::string("nothing was thrown");
  };
  const std::string here = "result_test.cpp:" + std::to_string(__LINE__ - 6) + ": ";
  CHECK(said(result<int>(coax::errc::bad_port)).starts_with("coax: value() at " + here));
  CHECK(said(result<void>(coax::errc::bad_port)).starts_with("coax: value() at " + here));
}

TEST_CASE("value throws the code that error gives", "[result]") {
  const result<int> kept = coax::errc::bad_port;
  CHECK(code_thrown_by([&] { (void)kept.value(); }) == coax::errc::bad_port);
  result<int> changeable = std::errc::timed_out;
  CHECK(code_thrown_by([&] { (void)changeable.value(); }) == std::errc::timed_out);
  CHECK(code_thrown_by([&] { (void)std::move(changeable).value(); }) == std::errc::timed_out);

  result<int> good = 1;
  good.value() = 2;
  CHECK(*good == 2);
}

TEST_CASE("what value throws carries the message of the code", "[result]") {
  try {
    result<int>(coax::errc::bad_port).value();
    FAIL("nothing was thrown");
  } catch (const std::system_error& error) {
    CHECK(std::string(error.what()).find("the port is not a number") != std::string::npos);
  }
}

TEST_CASE("a value is constructed and destroyed once", "[result]") {
  counted::reset();
  {
    const result<counted> made = counted(7);
    CHECK(made->value == 7);
    CHECK(counted::made == 2);
    CHECK(counted::alive() == 1);
  }
  CHECK(counted::copied == 0);
  CHECK(counted::moved == 1);
  CHECK(counted::alive() == 0);
}

TEST_CASE("taking the value out of an expiring result moves it", "[result]") {
  counted::reset();
  {
    result<counted> made = counted(7);
    const counted by_star = *std::move(made);
    CHECK(by_star.value == 7);
    CHECK(made->value == -1);

    made = counted(8);
    const counted by_value = std::move(made).value();
    CHECK(by_value.value == 8);
    CHECK(counted::copied == 0);

    const counted copied = *result<counted>(counted(9));
    CHECK(copied.value == 9);
    CHECK(counted::copied == 0);
  }
  CHECK(counted::alive() == 0);
}

TEST_CASE("a result that is not expiring keeps its value", "[result]") {
  counted::reset();
  {
    result<counted> made = counted(7);
    const counted copy = *made;
    CHECK(copy.value == 7);
    CHECK(made->value == 7);
    CHECK(counted::copied == 1);
    CHECK(&*made == &made.value());
    CHECK(&*made == made.operator->());
  }
  CHECK(counted::alive() == 0);
}

TEST_CASE("assigning changes a result between value and error", "[result]") {
  counted::reset();
  {
    result<counted> made = counted(1);
    made = std::errc::timed_out;
    CHECK_FALSE(made);
    CHECK(made.error() == std::errc::timed_out);
    CHECK(counted::alive() == 0);

    made = counted(2);
    REQUIRE(made);
    CHECK(made->value == 2);
    CHECK_FALSE(made.error());
    CHECK(counted::alive() == 1);

    const auto copy = made;
    made = coax::errc::end_of_stream;
    CHECK(copy->value == 2);
    made = copy;
    CHECK(made->value == 2);
    CHECK(counted::alive() == 2);
  }
  CHECK(counted::alive() == 0);
}

TEST_CASE("an error costs no value", "[result]") {
  counted::reset();
  {
    const result<counted> failed = std::errc::timed_out;
  }
  CHECK(counted::made == 0);
  CHECK(counted::destroyed == 0);
}

TEST_CASE("a value that can only be moved passes through", "[result]") {
  auto made = result<std::unique_ptr<int>>(std::make_unique<int>(5));
  REQUIRE(made);
  auto moved = std::move(made);
  CHECK(**moved == 5);
  const std::unique_ptr<int> taken = std::move(moved).value();
  CHECK(*taken == 5);

  const auto in_a_loop = [left = 3]() mutable -> result<std::unique_ptr<int>> {
    if (left == 0) return coax::errc::end_of_stream;
    return std::make_unique<int>(left--);
  };
  int sum = 0;
  auto next = in_a_loop;
  while (auto number = next()) sum += **number;
  CHECK(sum == 6);
}

TEST_CASE("a result of a type that takes anything still copies as a result", "[result]") {
  const result<std::any> made = std::any(3);
  const auto copy = made;  // NOLINT: the copy is the point
  CHECK(std::any_cast<int>(*copy) == 3);
  const result<std::any> failed = std::errc::timed_out;
  CHECK(failed.error() == std::errc::timed_out);
}

TEST_CASE("a result of a bool tells success apart from true", "[result]") {
  const result<bool> no = false;
  REQUIRE(no);
  CHECK_FALSE(*no);
}

TEST_CASE("a result can hold an optional that is empty", "[result]") {
  const result<std::optional<int>> none = std::nullopt;
  REQUIRE(none);
  CHECK_FALSE(none->has_value());
}

TEST_CASE("an assignment that throws half-way leaves a result that is an error", "[result]") {
  fragile armed;
  armed.armed = true;
  result<fragile> target = std::errc::timed_out;
  CHECK_THROWS_AS(target = result<fragile>(armed), std::runtime_error);
  CHECK_FALSE(target);
  CHECK(target.error());

  result<fragile> source = fragile();
  source->armed = true;
  CHECK_THROWS_AS(target = source, std::runtime_error);
  CHECK_FALSE(target);
  CHECK(target.error());
}

TEST_CASE("a result of nothing is success unless told otherwise", "[result]") {
  const result<void> done;
  CHECK(done);
  CHECK_FALSE(done.error());
  *done;
  CHECK_NOTHROW(done.value());

  const auto defaulted = []() -> result<void> { return {}; };
  CHECK(defaulted());
}

TEST_CASE("a result of nothing carries an error", "[result]") {
  result<void> failed = std::errc::timed_out;
  CHECK_FALSE(failed);
  CHECK(failed.error() == std::errc::timed_out);
  CHECK(code_thrown_by([&] { failed.value(); }) == std::errc::timed_out);

  failed = coax::errc::transfer_cut;
  CHECK(failed.error() == coax::errc::transfer_cut);
  failed = std::error_code(ECONNRESET, std::system_category());
  CHECK(failed.error() == std::errc::connection_reset);
  failed = {};
  CHECK(failed);
}

TEST_CASE("every error of coax has a message of its own", "[result]") {
  using coax::errc;
  std::set<std::string> messages;
  const std::array all = {errc::end_of_stream, errc::transfer_cut, errc::bad_address,
                          errc::bad_port, errc::path_too_long};
  for (const auto code : all) {
    const std::error_code made = code;
    CHECK(made);
    CHECK(std::string_view(made.category().name()) == "coax");
    CHECK(made.message().find("unknown") == std::string::npos);
    messages.insert(made.message());
  }
  CHECK(messages.size() == all.size());
  CHECK(make_error_code(static_cast<errc>(99)).message() == "unknown coax error 99");
}

#ifndef NDEBUG
namespace {

/// What `action`, which is expected to abort, prints to stderr first; empty when it does not abort.
std::string last_words(const auto& action) {
  std::array<int, 2> ends{};
  REQUIRE(::pipe(ends.data()) == 0);
  const pid_t child = ::fork();
  if (child == 0) {
    std::signal(SIGABRT, SIG_DFL);  // of Catch2, which would report a failure
    ::dup2(ends[1], STDERR_FILENO);
    action();
    ::_exit(0);
  }
  ::close(ends[1]);
  std::string words;
  std::array<char, 256> some{};
  for (ssize_t n = 0; (n = ::read(ends[0], some.data(), some.size())) > 0;) {
    words.append(some.data(), static_cast<std::size_t>(n));
  }
  ::close(ends[0]);
  int status = 0;
  ::waitpid(child, &status, 0);
  return WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT ? words : "";
}

}  // namespace

TEST_CASE("dereferencing an error aborts and says which", "[result]") {
  result<std::string> failed = std::make_error_code(std::errc::timed_out);
  const auto reason = failed.error().message();
  CHECK(last_words([&] { (void)*failed; }).find(reason) != std::string::npos);
  CHECK(last_words([&] { (void)failed->size(); }).find(reason) != std::string::npos);
  CHECK(last_words([&] { (void)*std::as_const(failed); }).find(reason) != std::string::npos);
  CHECK(last_words([&] { *result<void>(coax::errc::bad_port); }).find("the port") !=
        std::string::npos);
}

TEST_CASE("an error code that says success makes no result", "[result]") {
  const auto says_why = [](const std::string& words) {
    return words.find("error code that says success") != std::string::npos;
  };
  CHECK(says_why(last_words([] { (void)result<int>(std::error_code()); })));
  CHECK(says_why(last_words([] { (void)result<void>(std::error_code()); })));
}
#endif

namespace {

/// Its copies and moves throw when told to, after they have written to where they come to be.
struct explosive {
  explicit explosive(std::string t) : text(std::move(t)) {}
  explosive(const explosive& other) : text(other.text) {
    if (copies_throw) throw std::runtime_error("a copy");
  }
  explosive(explosive&& other) : text(std::move(other.text)) {
    if (moves_left >= 0 && moves_left-- == 0) throw std::runtime_error("a move");
  }
  ~explosive() = default;

  std::array<std::byte, 16> zeros{};
  std::string text;
  static inline bool copies_throw = false;
  static inline int moves_left = -1;  // until one throws; -1: none does
};

struct list_node {
  int value;
  result<std::unique_ptr<list_node>> next;
};

struct tree_node {
  int value;
  std::vector<result<tree_node>> children;
};

}  // namespace

TEST_CASE("a copy that throws leaves what is assigned to as it was", "[result]") {
  result<explosive> target(explosive("old"));
  const result<explosive> source(explosive("new"));
  explosive::copies_throw = true;
  CHECK_THROWS_AS(target = source, std::runtime_error);
  explosive::copies_throw = false;
  REQUIRE(target);
  CHECK(target->text == "old");
}

TEST_CASE("a move that throws leaves the value, or an error with a code that says so", "[result]") {
  bool thrown = true;
  int lost = 0;
  for (int moves = 0; thrown; ++moves) {
    result<explosive> target(explosive("old"));
    result<explosive> source(explosive("new"));
    explosive::moves_left = moves;
    thrown = false;
    try {
      target = std::move(source);
    } catch (const std::runtime_error&) {
      thrown = true;
    }
    explosive::moves_left = -1;
    if (target) {
      CHECK(target->text == (thrown ? "old" : "new"));
    } else {
      CHECK(target.error() == std::errc::state_not_recoverable);
      ++lost;
    }
    REQUIRE(moves < 10);
  }
  CHECK(lost == 1);  // between the end of the old and the beginning of the new
}

TEST_CASE("what is assigned may lie in the value that it takes the place of", "[result]") {
  auto last = std::make_unique<list_node>(list_node{2, std::errc::no_message});
  result<std::unique_ptr<list_node>> head(
      std::make_unique<list_node>(list_node{1, std::move(last)}));
  head = std::move((*head)->next);
  REQUIRE(head);
  CHECK((*head)->value == 2);
  head = std::move((*head)->next);
  CHECK(head.error() == std::errc::no_message);

  result<tree_node> tree(tree_node{1, {}});
  tree->children.emplace_back(tree_node{2, {}});
  tree = tree->children.front();
  REQUIRE(tree);
  CHECK(tree->value == 2);
}
