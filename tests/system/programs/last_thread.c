/* The main thread ends by pthread_exit before the thread that allocates; the program then ends, with
 * its standard output written. usage: last_thread [SEED] */
#include "pattern.h"

#include <pthread.h>

static void* work(void* unused) {
  usleep(100000);
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
  REQUIRE(pthread_create(&thread, NULL, work, NULL) == 0, "thread");
  pthread_exit(NULL);
}
