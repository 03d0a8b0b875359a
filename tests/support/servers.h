// Private servers for tests: a real redis-server and a real PostgreSQL in a temporary directory, on
// unix sockets, without persistence. They die with the test, also when it is killed. Not
// thread-safe; every function ends the test with a message when it cannot do its work.
#ifndef TESTS_SUPPORT_SERVERS_H
#define TESTS_SUPPORT_SERVERS_H
#include <stdbool.h>
#include <sys/types.h>

// False when the programs are not installed: print "skip: why" and skip.
bool test_has_redis(void);
bool test_has_postgres(void);

typedef struct test_server {
    pid_t pid;
    char dir[64];      // "/tmp/tiergate-test-XXXXXX", removed at the end
    char address[128]; // Redis: "unix:DIR/redis.sock"; PostgreSQL:
                       // "postgresql:///postgres?host=DIR&user=postgres"
} test_server;

// noeviction, nothing on disk. Started once and shared by all callers of the process.
const test_server *test_redis(void);
// The cluster is made by initdb at the first call (about 2 s), then started; shared by all callers
// of the process.
const test_server *test_postgres(void);
void test_server_kill(const test_server *s,
                      int signal); // the server and, when it is going to die, waits for that
void test_server_start(
    const test_server *s); // again, after it was killed; same address, empty Redis

// A directory that is removed at the end of the test.
const char *test_dir(void);

#endif
