// The one line kvmem may write to an engine's standard error, when it cannot serve.
//
// It goes to the file that descriptor 2 was at load, and nowhere if descriptor 2 is another by now:
// the engine may have reused the number for its data. It raises no SIGPIPE, touches no errno, and
// is given up if the reader leaves no room for it for a second.
#pragma once

namespace kvmem {

// "kvmem: " + parts + newline, in one write; nullptr parts are skipped. Only the first call of a
// process writes (every call with KVMEM_VERBOSE). Any thread, also one whose descriptor table is
// its own.
void notice(const char* a, const char* b = nullptr, const char* c = nullptr,
            const char* d = nullptr, const char* e = nullptr);
// As notice, always: for bytes that are lost.
void alarm(const char* a, const char* b = nullptr, const char* c = nullptr);
// As notice, only with KVMEM_VERBOSE.
void detail(const char* a, const char* b = nullptr, const char* c = nullptr);

// At load, before any thread.
void remember_stderr();

// The agent calls it once it no longer shares the engine's descriptors; zeros: nobody does.
void descriptors_are_apart(int pid, int agent_tid);
// An engine thread, one at a time: writes what the agent had to say but could not.
void write_left_line();

// Decimal, in a buffer of the caller's.
struct Decimal {
  char text[24];
};
Decimal decimal(long long value);

// A bounded 0-ended text of fixed parts; what does not fit is cut off.
class Text {
 public:
  Text& operator<<(const char* part);
  const char* get() const { return text_; }

 private:
  char text_[128] = {};
  unsigned length_ = 0;
};

}  // namespace kvmem
