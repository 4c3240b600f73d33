#include "cli/live.h"

#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <optional>
#include <utility>

#include "cli/exit_code.h"
#include "cli/fields.h"
#include "cli/rates.h"
#include "cli/screen.h"
#include "cli/signals.h"
#include "cli/top.h"

namespace kvmem::cli {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_between(Clock::time_point from, Clock::time_point to) {
  return std::chrono::duration<double>(to - from).count();
}

// The last two answers, and since when they are.
struct Answers {
  TopFacts facts;
  Clock::time_point now_at;
  std::string daemon;  // the pid of the one that answered last
  Clock::time_point restart_shown_until;

  void add(nlohmann::json answer) {
    const Clock::time_point at = Clock::now();
    std::string pid = fields::text(fields::member(answer, "daemon"), "pid");
    if (!daemon.empty() && pid != daemon) restart_shown_until = at + std::chrono::seconds(10);
    daemon = std::move(pid);
    facts.restarted = at < restart_shown_until;
    facts.elapsed_s = facts.now.is_object() ? seconds_between(now_at, at) : 0;
    facts.before = std::move(facts.now);
    facts.now = std::move(answer);
    facts.error.clear();
    now_at = at;
  }
  // Of what was before nothing is shown beside what comes after.
  void forget(std::string why) {
    facts.before = nullptr;
    facts.now = nullptr;
    facts.elapsed_s = 0;
    facts.error = std::move(why);
  }
};

class Live {
 public:
  Live(const LiveOptions& options, Screen* screen)
      : options_(options),
        screen_(*screen),
        signals_({SIGINT, SIGTERM, SIGHUP, SIGTSTP, SIGWINCH}) {
    answers_.facts.interval_s = options.interval_s;
  }

  LiveEnd run() {
    while (!done_) {
      draw();
      wait();
      take_signals();
      take_keys();
      take_answer();
    }
    return end_;
  }
  // The signal that it was ended by, which is to end the process when the terminal is given back.
  int ended_by() const { return ended_by_; }
  Signals& signals() { return signals_; }

 private:
  void draw() {
    view_.columns = screen_.columns();
    view_.rows = screen_.rows();
    const Frame frame = top_frame(answers_.facts, view_);
    scroll_max_ = frame.scroll_max;
    view_.scroll = std::min(view_.scroll, scroll_max_);
    screen_.draw(frame.lines);
  }

  void wait() {
    const Clock::time_point now = Clock::now();
    if (!asking_ && !view_.paused && now >= ask_at_) {
      // From now, not from when it was due: a machine that was asleep is not asked many times.
      ask_at_ = now + std::chrono::duration_cast<Clock::duration>(
                          std::chrono::duration<double>(options_.interval_s));
      asked_at_ = now;
      asking_.emplace(options_.socket, Question{});
      if (asking_->fd() < 0) return;
    }
    double seconds = 3600;
    if (asking_) {
      seconds = kAnswerTimeoutMs / 1e3 - seconds_between(asked_at_, now);
    } else if (!view_.paused) {
      seconds = seconds_between(now, ask_at_);
    }
    wait_readable({STDIN_FILENO, signals_.fd(), asking_ ? asking_->fd() : -1}, seconds);
  }

  void take_signals() {
    while (const int signal = signals_.take()) {
      if (signal == SIGWINCH) {
        screen_.resized();
      } else if (signal == SIGTSTP) {
        screen_.leave();
        signals_.suffer(SIGTSTP);
        screen_.resized();
      } else {
        ended_by_ = signal;
        done_ = true;
      }
    }
  }

  void take_keys() {
    pollfd input{STDIN_FILENO, POLLIN, 0};
    const bool readable = ::poll(&input, 1, 0) > 0;
    bool any = false;
    for (Key key = screen_.take_key(); key != Key::kNone; key = screen_.take_key()) {
      any = true;
      take(key);
    }
    // Readable without a key: the terminal is gone.
    if (readable && !any && (input.revents & (POLLHUP | POLLERR)) != 0) done_ = true;
  }

  void take(Key key) {
    const std::size_t page = view_.rows > 3 ? view_.rows - 3 : 1;
    switch (key) {
      case Key::kQuit:
        done_ = true;
        break;
      case Key::kSort:
        view_.sort = next_sort(view_.sort);
        break;
      case Key::kPause:
        view_.paused = !view_.paused;
        break;
      case Key::kHelp:
        view_.help = !view_.help;
        view_.scroll = 0;
        break;
      case Key::kUp:
        view_.scroll -= std::min<std::size_t>(view_.scroll, 1);
        break;
      case Key::kDown:
        ++view_.scroll;
        break;
      case Key::kPageUp:
        view_.scroll -= std::min(view_.scroll, page);
        break;
      case Key::kPageDown:
        view_.scroll += page;
        break;
      case Key::kHome:
        view_.scroll = 0;
        break;
      case Key::kEnd:
        view_.scroll = scroll_max_;
        break;
      case Key::kOther:
      case Key::kNone:
        break;
    }
    view_.scroll = std::min(view_.scroll, scroll_max_);
  }

  void take_answer() {
    if (!asking_) return;
    if (asking_->fd() >= 0) {
      pollfd answer{asking_->fd(), POLLIN, 0};
      const bool late = seconds_between(asked_at_, Clock::now()) >= kAnswerTimeoutMs / 1e3;
      if (::poll(&answer, 1, 0) <= 0) {
        if (!late) return;
        asking_.reset();
        answers_.forget("the daemon at " + options_.socket +
                        " does not answer: see its log (journalctl -u kvmemd)");
        return;
      }
    }
    Answer answer = asking_->finish();
    asking_.reset();
    if (answer.ok()) {
      answers_.add(std::move(answer.json));
    } else if (answer.exit_code == kExitUsage) {
      end_ = {answer.exit_code, std::move(answer.error)};
      done_ = true;
    } else {
      answers_.forget(std::move(answer.error));
    }
  }

  const LiveOptions& options_;
  Screen& screen_;
  Signals signals_;
  TopView view_;
  std::size_t scroll_max_ = 0;
  Answers answers_;
  std::optional<Asking> asking_;
  Clock::time_point ask_at_{};
  Clock::time_point asked_at_{};
  LiveEnd end_;
  int ended_by_ = 0;
  bool done_ = false;
};

LiveEnd run_on_terminal(const LiveOptions& options) {
  std::unique_ptr<Screen> screen = Screen::create(options.style.colour);
  if (screen == nullptr) {
    return {kExitUsage,
            "top needs a terminal that can place its cursor (see TERM): use `kvmemctl status`, or "
            "`kvmemctl top --once` for rates"};
  }
  Live live(options, screen.get());
  LiveEnd end = live.run();
  screen.reset();
  if (live.ended_by() != 0) live.signals().suffer(live.ended_by());
  return end;
}

// To a pipe or a file.
LiveEnd run_as_text(const LiveOptions& options) {
  Answers answers;
  for (;;) {
    Answer answer = ask(options.socket, Question{});
    if (!answer.ok()) return {answer.exit_code, std::move(answer.error)};
    answers.add(std::move(answer.json));
    if (answers.facts.elapsed_s > 0) {
      std::string text;
      if (options.json) {
        const Rates rates =
            rates_between(answers.facts.before, answers.facts.now, answers.facts.elapsed_s);
        text =
            rates_json(rates, answers.facts.now)
                .dump(options.once ? 2 : -1, ' ', false, nlohmann::json::error_handler_t::replace) +
            "\n";
      } else {
        text = top_text(answers.facts, SortBy::kHeat, options.style.width);
      }
      const bool written = std::fwrite(text.data(), 1, text.size(), stdout) == text.size();
      if (std::fflush(stdout) != 0 || !written) return {kExitFailed, "cannot write the rates"};
      if (options.once) return {};
    }
    wait_readable({}, options.interval_s);
  }
}

}  // namespace

LiveEnd run_live(const LiveOptions& options) {
  return options.once || options.json ? run_as_text(options) : run_on_terminal(options);
}

}  // namespace kvmem::cli
