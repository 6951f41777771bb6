// SPDX-License-Identifier: LGPL-2.1-only
// ring ROUNDS: a token goes around, and all ranks reduce what they make of it; each twentieth round waits for a file
// gate-ROUND. The last line is the same in every run.
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

int main(int count, char **arguments) {
  int rounds = atoi(arguments[1]), rank, size;
  MPI_Init(&count, &arguments);
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  unsigned long token = 1, sum = 0, part, all;
  for (int round = 1; round <= rounds; round++) {
    char gate[32];
    snprintf(gate, sizeof gate, "gate-%d", round);
    if (round % 20 == 0 && rank == 0) {
      printf("at %d\n", round);
      fflush(stdout);
      while (access(gate, F_OK)) usleep(10000);
    }
    if (rank) MPI_Recv(&token, 1, MPI_UNSIGNED_LONG, rank - 1, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
    token = token * 6364136223846793005UL + rank;
    MPI_Send(&token, 1, MPI_UNSIGNED_LONG, (rank + 1) % size, 0, MPI_COMM_WORLD);
    if (!rank) MPI_Recv(&token, 1, MPI_UNSIGNED_LONG, size - 1, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
    part = token * (rank + 1);
    MPI_Allreduce(&part, &all, 1, MPI_UNSIGNED_LONG, MPI_SUM, MPI_COMM_WORLD);
    sum ^= all * round;
  }
  if (!rank) printf("result %lx %lx\n", token, sum);
  MPI_Finalize();
  return 0;
}
