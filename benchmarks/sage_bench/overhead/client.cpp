// A load client that is never the bottleneck: one thread, epoll, HTTP/1.1 with keep-alive.
//
// usage: client closed PORT CONNECTIONS SECONDS KEY BODY...    each connection asks again and again
//        client rate   PORT RATE SECONDS KEY BODY...           open loop, Poisson, latency from schedule
//        client hold   PORT IDLE STREAMS KEY BODY STREAM_BODY  holds connections until stdin ends
// A BODY is "PATH=FILE": the request's path and a file with its JSON; several are taken in turn.
// Prints one JSON object; any answer but a complete 200 is an error and is counted and shown.
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <deque>
#include <fstream>
#include <iterator>
#include <memory>
#include <random>
#include <string>
#include <vector>

namespace {

using std::string;

[[noreturn]] void fail(const string& what) {
  std::fprintf(stderr, "client: %s: %s\n", what.c_str(), std::strerror(errno));
  std::exit(1);
}

int64_t now_ns() {
  timespec t{};
  clock_gettime(CLOCK_MONOTONIC, &t);
  return int64_t{t.tv_sec} * 1'000'000'000 + t.tv_nsec;
}

enum class State { head, counted, chunk_size, chunk_data, chunk_end, trailer };

struct Connection {
  int fd = -1;
  bool busy = false;
  State state = State::head;
  string line;  // a head or a chunk's size that is not complete yet
  size_t left = 0;
  int status = 0;
  bool event_stream = false, after_newline = false;
  int64_t asked = 0, first = 0;
  string unsent;
};

int epoll_fd, port;
string key;
std::vector<string> requests;
size_t next_request = 0;
uint64_t answered = 0, events_seen = 0, errors = 0;
string first_error;
std::vector<double> latencies, firsts;
std::vector<std::unique_ptr<Connection>> all;

void note_error(const string& what) {
  if (!errors++) first_error = what;
}

void watch(int fd, void* data, int operation = EPOLL_CTL_ADD, uint32_t what = EPOLLIN) {
  epoll_event event{};
  event.events = what;
  event.data.ptr = data;
  if (epoll_ctl(epoll_fd, operation, fd, &event)) fail("epoll_ctl");
}

void connect_to_server(Connection& c) {
  c.fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  address.sin_port = htons(static_cast<uint16_t>(port));
  if (c.fd < 0 || connect(c.fd, reinterpret_cast<sockaddr*>(&address), sizeof address)) fail("connect");
  const int one = 1;
  setsockopt(c.fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  watch(c.fd, &c);
}

Connection& new_connection() {
  all.push_back(std::make_unique<Connection>());
  connect_to_server(*all.back());
  return *all.back();
}

void ask(Connection& c, int64_t scheduled, const string* request = nullptr) {
  if (!request) request = &requests[next_request++ % requests.size()];
  c.busy = true;
  c.state = State::head;
  c.line.clear();
  c.first = 0;
  c.asked = scheduled;
  size_t sent = 0;
  while (sent < request->size()) {  // blocking: requests are small beside the socket's buffer
    const ssize_t n = send(c.fd, request->data() + sent, request->size() - sent, MSG_NOSIGNAL);
    if (n < 0) {
      note_error(string("send: ") + std::strerror(errno));
      return;
    }
    sent += static_cast<size_t>(n);
  }
}

void count_events(Connection& c, const char* data, size_t size) {
  const char* const end = data + size;
  if (c.after_newline && size && *data == '\n') ++events_seen;
  for (const char* at = data; (at = static_cast<const char*>(std::memchr(at, '\n', static_cast<size_t>(end - at)))) != nullptr;) {
    if (++at == end) break;
    if (*at == '\n') {
      ++events_seen;
      if (++at == end) {
        c.after_newline = false;
        return;
      }
    }
  }
  c.after_newline = size ? end[-1] == '\n' : c.after_newline;
}

void parse_head(Connection& c) {
  c.status = std::atoi(c.line.c_str() + 9);
  string lower;
  std::transform(c.line.begin(), c.line.end(), std::back_inserter(lower), [](unsigned char ch) { return std::tolower(ch); });
  c.event_stream = lower.find("content-type: text/event-stream") != string::npos;
  c.after_newline = false;
  const size_t length = lower.find("\r\ncontent-length:");
  if (length != string::npos) {
    c.left = std::strtoul(lower.c_str() + length + 17, nullptr, 10);
    c.state = State::counted;
  } else if (lower.find("\r\ntransfer-encoding: chunked") != string::npos) {
    c.state = State::chunk_size;
  } else {
    fail("an answer with neither content-length nor chunks: " + c.line);
  }
  c.line.clear();
}

// Whether the answer is complete; `used` says how much of the data it took.
bool feed(Connection& c, const char* data, size_t size, size_t& used, int64_t now) {
  size_t at = 0;
  auto take_line = [&](const char* ending, size_t length) {
    while (at < size) {
      c.line += data[at++];
      if (c.line.size() >= length && c.line.compare(c.line.size() - length, length, ending) == 0) return true;
    }
    return false;
  };
  while (at < size || (c.state == State::counted && c.left == 0)) {
    switch (c.state) {
      case State::head:
        if (!take_line("\r\n\r\n", 4)) break;
        if (c.line.compare(9, 3, "100") == 0) {
          c.line.clear();
          break;
        }
        parse_head(c);
        break;
      case State::counted:
      case State::chunk_data: {
        const size_t n = std::min(c.left, size - at);
        if (n && !c.first) c.first = now;
        if (c.event_stream) count_events(c, data + at, n);
        at += n;
        c.left -= n;
        if (c.left) break;
        if (c.state == State::counted) {
          used = at;
          return true;
        }
        c.state = State::chunk_end;
        break;
      }
      case State::chunk_size:
        if (!take_line("\r\n", 2)) break;
        c.left = std::strtoul(c.line.c_str(), nullptr, 16);
        c.line.clear();
        c.state = c.left ? State::chunk_data : State::trailer;
        break;
      case State::chunk_end:
      case State::trailer:
        if (!take_line("\r\n", 2)) break;
        c.line.clear();
        if (c.state == State::trailer) {
          used = at;
          return true;
        }
        c.state = State::chunk_size;
        break;
    }
  }
  used = at;
  return false;
}

// Reads what there is; whether an answer has ended.
bool on_readable(Connection& c) {
  static char buffer[1 << 18];
  const ssize_t n = recv(c.fd, buffer, sizeof buffer, MSG_DONTWAIT);
  if (n < 0 && errno == EAGAIN) return false;
  if (n <= 0) {
    if (c.busy) note_error("the connection was closed in the middle of an answer");
    close(c.fd);
    connect_to_server(c);
    return c.busy;
  }
  const int64_t now = now_ns();
  size_t used = 0;
  if (!c.busy) {
    note_error("bytes that nobody asked for");
    return false;
  }
  if (!feed(c, buffer, static_cast<size_t>(n), used, now)) return false;
  ++answered;
  if (c.status != 200) note_error("status " + std::to_string(c.status) + ": " + string(buffer, std::min<size_t>(static_cast<size_t>(n), 600)));
  latencies.push_back(static_cast<double>(now - c.asked) / 1e6);
  firsts.push_back(static_cast<double>((c.first ? c.first : now) - c.asked) / 1e6);
  c.busy = false;
  return true;
}

double quantile(std::vector<double>& values, double q) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  const double place = q * static_cast<double>(values.size() - 1);
  const size_t low = static_cast<size_t>(place);
  const size_t high = std::min(low + 1, values.size() - 1);
  return values[low] + (values[high] - values[low]) * (place - static_cast<double>(low));
}

string escaped(const string& text) {
  string out;
  for (const char ch : text) {
    if (ch == '"' || ch == '\\') out += '\\';
    out += static_cast<unsigned char>(ch) < 0x20 ? ' ' : ch;
  }
  return out;
}

void report(double wall_s) {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  const double cpu = static_cast<double>(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
                     static_cast<double>(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
  std::printf(
      "{\"answers\":%llu,\"events\":%llu,\"errors\":%llu,\"first_error\":\"%s\",\"wall_s\":%.6f,"
      "\"p50_ms\":%.6f,\"p99_ms\":%.6f,\"first_p50_ms\":%.6f,\"first_p99_ms\":%.6f,\"cpu_s\":%.6f}\n",
      static_cast<unsigned long long>(answered), static_cast<unsigned long long>(events_seen),
      static_cast<unsigned long long>(errors), escaped(first_error).c_str(), wall_s, quantile(latencies, 0.5),
      quantile(latencies, 0.99), quantile(firsts, 0.5), quantile(firsts, 0.99), cpu);
}

void load_request(const string& argument) {
  const size_t equals = argument.find('=');
  std::ifstream file(argument.substr(equals + 1), std::ios::binary);
  if (equals == string::npos || !file) fail("body " + argument);
  const string body((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  requests.push_back("POST " + argument.substr(0, equals) + " HTTP/1.1\r\nHost: 127.0.0.1:" + std::to_string(port) +
                     "\r\nAuthorization: Bearer " + key +
                     "\r\nAccept: application/json\r\nUser-Agent: sage-bench\r\nContent-Type: application/json\r\n"
                     "Content-Length: " + std::to_string(body.size()) + "\r\n\r\n" + body);
}

int run_closed(int count, double seconds) {
  for (int i = 0; i < count; ++i) new_connection();
  const int64_t begun = now_ns(), end = begun + static_cast<int64_t>(seconds * 1e9);
  for (auto& c : all) ask(*c, now_ns());
  int busy = count;
  std::vector<epoll_event> found(1024);
  while (busy) {
    const int n = epoll_wait(epoll_fd, found.data(), 1024, 20'000);
    if (n == 0) note_error("no byte within 20 s"), busy = 0;
    for (int i = 0; i < n; ++i) {
      auto& c = *static_cast<Connection*>(found[static_cast<size_t>(i)].data.ptr);
      if (!on_readable(c)) continue;
      const int64_t now = now_ns();
      if (now < end && errors < 100) {
        ask(c, now);
      } else {
        c.busy = false;
        --busy;
      }
    }
  }
  report(static_cast<double>(now_ns() - begun) / 1e9);
  return 0;
}

int run_rate(double rate, double seconds) {
  std::mt19937_64 random(7);
  std::exponential_distribution<double> gap(rate);
  std::deque<Connection*> idle;
  for (int i = 0; i < 64; ++i) idle.push_back(&new_connection());
  const int timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
  watch(timer, nullptr);
  const int64_t begun = now_ns(), end = begun + static_cast<int64_t>(seconds * 1e9);
  int64_t next = begun;
  int busy = 0;
  std::vector<epoll_event> found(1024);
  while (next < end || busy) {
    while (next < end && next <= now_ns()) {
      if (idle.empty()) idle.push_back(&new_connection());
      Connection* const c = idle.front();
      idle.pop_front();
      ask(*c, next);
      ++busy;
      next += static_cast<int64_t>(gap(random) * 1e9);
    }
    itimerspec when{};
    if (next < end) {
      when.it_value.tv_sec = next / 1'000'000'000;
      when.it_value.tv_nsec = next % 1'000'000'000;
    }
    timerfd_settime(timer, TFD_TIMER_ABSTIME, &when, nullptr);
    const int n = epoll_wait(epoll_fd, found.data(), 1024, 20'000);
    if (n == 0) {
      note_error("no byte within 20 s");
      break;
    }
    for (int i = 0; i < n; ++i) {
      auto* const c = static_cast<Connection*>(found[static_cast<size_t>(i)].data.ptr);
      if (!c) {
        uint64_t fired;
        if (read(timer, &fired, sizeof fired) < 0 && errno != EAGAIN) fail("timer");
      } else if (on_readable(*c)) {
        --busy;
        c->busy = false;
        idle.push_back(c);
      }
    }
  }
  report(static_cast<double>(now_ns() - begun) / 1e9);
  return 0;
}

int run_hold(int idle, int streams) {
  for (int i = 0; i < idle + streams; ++i) ask(new_connection(), now_ns(), &requests[i < idle ? 0 : 1]);
  watch(STDIN_FILENO, nullptr);
  bool held = false;
  std::vector<epoll_event> found(1024);
  for (;;) {
    const int n = epoll_wait(epoll_fd, found.data(), 1024, -1);
    for (int i = 0; i < n; ++i) {
      auto* const c = static_cast<Connection*>(found[static_cast<size_t>(i)].data.ptr);
      if (!c) {
        report(0);
        return 0;
      }
      if (on_readable(*c) && c->event_stream) note_error("a stream ended early");
    }
    if (held) continue;
    int ready = 0;
    for (const auto& c : all) ready += c->busy ? c->first != 0 : 1;
    held = ready == idle + streams && static_cast<int>(answered) >= idle;
    if (held) std::printf("held\n"), std::fflush(stdout);
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 7) {
    std::fprintf(stderr, "usage: client closed|rate|hold PORT COUNT SECONDS|STREAMS KEY PATH=FILE...\n");
    return 2;
  }
  const string mode = argv[1];
  port = std::atoi(argv[2]);
  key = argv[5];
  for (int i = 6; i < argc; ++i) load_request(argv[i]);
  epoll_fd = epoll_create1(EPOLL_CLOEXEC);
  if (mode == "closed") return run_closed(std::atoi(argv[3]), std::atof(argv[4]));
  if (mode == "rate") return run_rate(std::atof(argv[3]), std::atof(argv[4]));
  if (mode == "hold" && requests.size() == 2) return run_hold(std::atoi(argv[3]), std::atoi(argv[4]));
  std::fprintf(stderr, "client: unknown mode %s\n", argv[1]);
  return 2;
}
