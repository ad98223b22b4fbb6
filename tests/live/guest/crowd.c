/* A crowd: SLEEPERS processes that last, and beside them, until killed, others that are made and die.
 *
 *   crowd SLEEPERS CHURN
 *
 * The sleepers are called "sleeper". Each of the CHURN makers starts one "mayfly" after the other: it lives for some
 * milliseconds, some have a thread, some execute this program anew. Prints "CROWD" and the sleepers' PIDs when all are there.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

static void *idle(void *nothing)
{
    usleep(2000);
    return nothing;
}

static void live(char **argv, unsigned number)
{
    pthread_t thread;
    prctl(PR_SET_NAME, "mayfly");
    if (number % 4 == 1)
        pthread_create(&thread, NULL, idle, NULL);
    if (number % 4 == 2) {
        execl(argv[0], "mayfly", "0", "0", (char *)NULL);
        _exit(1);
    }
    usleep(1000 * (number % 7));
    _exit(0);
}

static void make(char **argv)
{
    prctl(PR_SET_NAME, "maker");
    for (unsigned number = 0;; number++) {
        pid_t child = fork();
        if (child == 0)
            live(argv, number);
        if (child < 0 || number % 3 == 2)
            while (waitpid(-1, NULL, child < 0 ? 0 : WNOHANG) > 0)
                ;
    }
}

int main(int argc, char **argv)
{
    int sleepers, churn;
    if (argc != 3)
        return 2;
    sleepers = atoi(argv[1]);
    churn = atoi(argv[2]);
    if (!strcmp(argv[0], "mayfly"))
        return 0;
    printf("CROWD");
    fflush(stdout);
    for (int number = 0; number < sleepers; number++) {
        pid_t child = fork();
        if (child < 0)
            return 1;
        if (child == 0) {
            prctl(PR_SET_NAME, "sleeper");
            for (;;)
                pause();
        }
        printf(" %d", child);
    }
    printf("\n");
    fflush(stdout);
    for (int number = 0; number < churn; number++)
        if (fork() == 0)
            make(argv);
    for (;;)
        pause();
}
