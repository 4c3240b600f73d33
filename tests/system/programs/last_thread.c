/* The main thread ends by pthread_exit before the thread that allocates; the program then ends,
 * with its standard output written. Main can be joined, as any thread. With "early" the agent is
 * there before main ends. usage: last_thread [SEED [early]] */
#include <pthread.h>

#include "pattern.h"

static pthread_t g_main;

static void* work(void* unused) {
  usleep(100000);
  void* result = NULL;
  REQUIRE(pthread_join(g_main, &result) == 0 && result == &g_main, "main is joined");
  unsigned char* p = malloc(40 * MIB);
  REQUIRE(p != NULL, "malloc");
  require_managed(p);
  fill(p, 0, 40 * MIB, 1);
  check(p, 0, 40 * MIB, 1, "after main");
  free(p);
  usleep(100000);
  printf("ok the last thread ended the program\n"); /* flushed by exit alone */
  return unused;
}

int main(int argc, char** argv) {
  pthread_t thread;
  take_seed(argc, argv, 1);
  g_main = pthread_self();
  REQUIRE(pthread_create(&thread, NULL, work, NULL) == 0, "thread");
  if (argc > 2) {
    unsigned char* p = malloc(40 * MIB);
    REQUIRE(p != NULL, "malloc");
    require_managed(p);
    free(p);
  }
  pthread_exit(&g_main);
}
