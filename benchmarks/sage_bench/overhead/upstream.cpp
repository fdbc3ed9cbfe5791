// A mock engine that costs next to nothing: one thread, epoll, HTTP/1.1 with keep-alive.
//
// usage: upstream PORTS DIMENSIONS
// Listens on PORTS free loopback ports and prints them on one line, then serves until stdin ends.
// GET answers 200. POST .../embeddings answers one vector per element of "input". Other POSTs answer
// a chat completion; with "stream":true as server-sent events, as the prompt's own words say:
// "events:N" (default 16) and "gap-us:N" (default 0) between them. Bodies need a content-length.
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <memory>
#include <queue>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace {

using std::string;
using std::string_view;

[[noreturn]] void fail(const char* what) {
  std::fprintf(stderr, "upstream: %s: %s\n", what, std::strerror(errno));
  std::exit(1);
}

int64_t now_ns() {
  timespec t{};
  clock_gettime(CLOCK_MONOTONIC, &t);
  return int64_t{t.tv_sec} * 1'000'000'000 + t.tv_nsec;
}

struct Connection {
  int fd = -1;
  uint64_t serial = 0;
  string in, out;
  int events_left = -1;  // of the stream under way; -1: none
  int64_t gap_ns = 0;
  bool wants_usage = false;
  bool blocked = false;  // waits for the socket to take more
};

struct Due {
  int64_t at;
  int fd;
  uint64_t serial;
  bool operator<(const Due& other) const { return at > other.at; }
};

int epoll_fd, timer_fd;
uint64_t next_serial = 1;
std::unordered_map<int, std::unique_ptr<Connection>> connections;
std::priority_queue<Due> due;
std::vector<string> vectors;

constexpr string_view kAnswer =
    R"({"id":"chatcmpl-1","object":"chat.completion","created":1,"model":"m","choices":[{"index":0,)"
    R"("message":{"role":"assistant","content":"The quick brown fox jumps over the lazy dog."},)"
    R"("logprobs":null,"finish_reason":"stop"}],)"
    R"("usage":{"prompt_tokens":24,"completion_tokens":10,"total_tokens":34}})";
constexpr string_view kEvent =
    R"(data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"m","choices":)"
    R"([{"index":0,"delta":{"content":" word"},"logprobs":null,"finish_reason":null}]})"
    "\n\n";
constexpr string_view kLast =
    R"(data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"m","choices":)"
    R"([{"index":0,"delta":{},"logprobs":null,"finish_reason":"stop"}]})"
    "\n\n";
constexpr string_view kUsage =
    R"(data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"m","choices":[],)"
    R"("usage":{"prompt_tokens":24,"completion_tokens":16,"total_tokens":40}})"
    "\n\n";

void close_connection(Connection& c) {
  close(c.fd);
  connections.erase(c.fd);
}

// False: the connection is gone.
bool flush(Connection& c) {
  while (!c.out.empty()) {
    const ssize_t n = send(c.fd, c.out.data(), c.out.size(), MSG_NOSIGNAL);
    if (n < 0) {
      if (errno == EAGAIN) break;
      close_connection(c);
      return false;
    }
    c.out.erase(0, static_cast<size_t>(n));
  }
  const bool blocked = !c.out.empty();
  if (blocked != c.blocked) {
    epoll_event event{};
    event.events = EPOLLIN | (blocked ? unsigned{EPOLLOUT} : 0u);
    event.data.fd = c.fd;
    epoll_ctl(epoll_fd, EPOLL_CTL_MOD, c.fd, &event);
    c.blocked = blocked;
  }
  return true;
}

void add_head(string& out, size_t length) {
  out += "HTTP/1.1 200 OK\r\ndate: Thu, 26 Nov 2026 12:00:00 GMT\r\nserver: mock\r\ncontent-length: ";
  out += std::to_string(length);
  out += "\r\ncontent-type: application/json\r\n\r\n";
}

void add_chunk(string& out, string_view data) {
  char size[16];
  std::snprintf(size, sizeof size, "%zx\r\n", data.size());
  out += size;
  out += data;
  out += "\r\n";
}

long number_after(string_view body, string_view key, long otherwise) {
  const size_t at = body.find(key);
  return at == string_view::npos ? otherwise : std::strtol(body.data() + at + key.size(), nullptr, 10);
}

// Elements of the array "input": strings, or arrays of token ids. A plain string counts as one.
size_t inputs_of(string_view body) {
  size_t at = body.find("\"input\"");
  if (at == string_view::npos) return 1;
  at = body.find(':', at) + 1;
  while (at < body.size() && body[at] == ' ') ++at;
  if (at >= body.size() || body[at] != '[') return 1;
  size_t count = 0;
  bool in_text = false;
  int depth = 0;
  for (; at < body.size(); ++at) {
    const char ch = body[at];
    if (in_text) {
      if (ch == '\\') {
        ++at;
      } else if (ch == '"') {
        in_text = false;
      }
    } else if (ch == '"') {
      in_text = true;
      if (depth == 1) ++count;
    } else if (ch == '[') {
      if (++depth == 2) ++count;
    } else if (ch == ']' && --depth == 0) {
      break;
    }
  }
  return count;
}

void answer_embeddings(Connection& c, string_view body) {
  const size_t count = inputs_of(body);
  string answer = R"({"object":"list","data":[)";
  for (size_t i = 0; i < count; ++i) {
    if (i) answer += ',';
    answer += R"({"object":"embedding","index":)" + std::to_string(i) + R"(,"embedding":)";
    answer += vectors[i % vectors.size()];
    answer += '}';
  }
  const string tokens = std::to_string(8 * count);
  answer += R"(],"model":"m","usage":{"prompt_tokens":)" + tokens + R"(,"total_tokens":)" + tokens + "}}";
  add_head(c.out, answer.size());
  c.out += answer;
}

void add_event(Connection& c) {
  if (--c.events_left > 0) {
    add_chunk(c.out, kEvent);
    return;
  }
  add_chunk(c.out, kLast);
  if (c.wants_usage) add_chunk(c.out, kUsage);
  add_chunk(c.out, "data: [DONE]\n\n");
  c.out += "0\r\n\r\n";
  c.events_left = -1;
}

void go_on(Connection& c) {
  do {
    add_event(c);
  } while (c.events_left >= 0 && c.gap_ns == 0);
  if (c.events_left >= 0) due.push({now_ns() + c.gap_ns, c.fd, c.serial});
}

void answer(Connection& c, string_view head, string_view body) {
  if (head.substr(0, 5) != "POST ") {
    constexpr string_view up = R"({"status":"ok","object":"list","data":[{"id":"m","object":"model"}]})";
    add_head(c.out, up.size());
    c.out += up;
    return;
  }
  const string_view line = head.substr(0, head.find('\r'));
  if (line.find("/embeddings ") != string_view::npos) {
    answer_embeddings(c, body);
    return;
  }
  if (body.find("\"stream\":true") == string_view::npos && body.find("\"stream\": true") == string_view::npos) {
    add_head(c.out, kAnswer.size());
    c.out += kAnswer;
    return;
  }
  c.out += "HTTP/1.1 200 OK\r\ndate: Thu, 26 Nov 2026 12:00:00 GMT\r\nserver: mock\r\n"
           "content-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n";
  c.events_left = static_cast<int>(number_after(body, "events:", 16));
  c.gap_ns = number_after(body, "gap-us:", 0) * 1000;
  c.wants_usage = body.find("\"include_usage\":true") != string_view::npos ||
                  body.find("\"include_usage\": true") != string_view::npos;
  go_on(c);
}

size_t content_length(string_view head) {
  constexpr string_view name = "content-length:";
  for (size_t at = 0; (at = head.find("\r\n", at)) != string_view::npos;) {
    at += 2;
    if (head.size() - at > name.size() && strncasecmp(head.data() + at, name.data(), name.size()) == 0)
      return std::strtoul(head.data() + at + name.size(), nullptr, 10);
  }
  return 0;
}

bool read_requests(Connection& c) {
  char buffer[65536];
  for (;;) {
    const ssize_t n = recv(c.fd, buffer, sizeof buffer, 0);
    if (n > 0) {
      c.in.append(buffer, static_cast<size_t>(n));
      if (n < static_cast<ssize_t>(sizeof buffer)) break;
      continue;
    }
    if (n < 0 && errno == EAGAIN) break;
    close_connection(c);
    return false;
  }
  while (c.events_left < 0) {
    const size_t end = c.in.find("\r\n\r\n");
    if (end == string::npos) break;
    const string_view head(c.in.data(), end + 2);
    const size_t length = content_length(head);
    if (c.in.size() < end + 4 + length) break;
    answer(c, head, string_view(c.in).substr(end + 4, length));
    c.in.erase(0, end + 4 + length);
  }
  return flush(c);
}

void arm_timer() {
  itimerspec when{};
  if (!due.empty()) {
    const int64_t at = due.top().at;
    when.it_value.tv_sec = at / 1'000'000'000;
    when.it_value.tv_nsec = at % 1'000'000'000;
  }
  timerfd_settime(timer_fd, TFD_TIMER_ABSTIME, &when, nullptr);
}

void on_timer() {
  uint64_t fired;
  if (read(timer_fd, &fired, sizeof fired) < 0 && errno != EAGAIN) fail("timer");
  const int64_t now = now_ns();
  while (!due.empty() && due.top().at <= now) {
    const Due next = due.top();
    due.pop();
    const auto found = connections.find(next.fd);
    if (found == connections.end() || found->second->serial != next.serial) continue;
    Connection& c = *found->second;
    if (c.events_left < 0) continue;
    go_on(c);
    flush(c);
  }
}

int listen_on_a_free_port(int& port) {
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  if (fd < 0 || bind(fd, reinterpret_cast<sockaddr*>(&address), sizeof address) || listen(fd, 4096))
    fail("listen");
  socklen_t size = sizeof address;
  getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size);
  port = ntohs(address.sin_port);
  return fd;
}

void watch(int fd) {
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.fd = fd;
  if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event)) fail("epoll_ctl");
}

void make_vectors(int dimensions) {
  uint32_t state = 12345;
  for (int v = 0; v < 64; ++v) {
    string text = "[";
    for (int d = 0; d < dimensions; ++d) {
      state = state * 1664525u + 1013904223u;
      char number[32];
      std::snprintf(number, sizeof number, "%s%.9g", d ? "," : "", (static_cast<double>(state >> 8) / (1 << 24) - 0.5) / 8);
      text += number;
    }
    vectors.push_back(text + "]");
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: upstream PORTS DIMENSIONS\n");
    return 2;
  }
  make_vectors(std::atoi(argv[2]));
  epoll_fd = epoll_create1(EPOLL_CLOEXEC);
  timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
  watch(timer_fd);
  watch(STDIN_FILENO);
  std::vector<int> listeners;
  for (int i = 0; i < std::atoi(argv[1]); ++i) {
    int port = 0;
    listeners.push_back(listen_on_a_free_port(port));
    watch(listeners.back());
    std::printf("%s%d", i ? " " : "", port);
  }
  std::printf("\n");
  std::fflush(stdout);
  std::vector<epoll_event> events(512);
  for (;;) {
    const int n = epoll_wait(epoll_fd, events.data(), static_cast<int>(events.size()), -1);
    if (n < 0 && errno != EINTR) fail("epoll_wait");
    for (int i = 0; i < n; ++i) {
      const int fd = events[static_cast<size_t>(i)].data.fd;
      if (fd == STDIN_FILENO) return 0;
      if (fd == timer_fd) {
        on_timer();
        continue;
      }
      bool listening = false;
      for (const int l : listeners) listening |= l == fd;
      if (listening) {
        for (int peer; (peer = accept4(fd, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0;) {
          const int one = 1;
          setsockopt(peer, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
          auto c = std::make_unique<Connection>();
          c->fd = peer;
          c->serial = next_serial++;
          watch(peer);
          connections[peer] = std::move(c);
        }
        continue;
      }
      const auto found = connections.find(fd);
      if (found == connections.end()) continue;
      const uint32_t what = events[static_cast<size_t>(i)].events;
      if ((what & EPOLLOUT) && !flush(*found->second)) continue;
      if (what & (EPOLLIN | EPOLLHUP | EPOLLERR)) read_requests(*found->second);
    }
    arm_timer();
  }
}
