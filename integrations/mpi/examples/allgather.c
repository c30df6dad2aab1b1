/* Batch norm of a batch that the ranks have parts of, through the C interface: y and dx have the bits of one process with the whole
 * batch, and an error of one rank is one of all.
 *
 *   mpicc -O2 -I ../../../include allgather.c -L ... -lbatchnorm -o allgather && mpirun -n 3 ./allgather
 */

#include <limits.h>
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "batchnorm.h"

/* Blocks of samples, not a multiple of the usual numbers of ranks. */
enum { BLOCKS = 5, CHANNELS = 70, SIDE = 7 };

/* Tells everyone's bytes to everyone. A rank that has no memory says so in place of its length, and no one waits for it. */
static int32_t gather(void *context, const void *bytes, size_t len, batchnorm_collect collect, void *argument) {
  const MPI_Comm comm = *(const MPI_Comm *)context;
  /* No bytes may be at any address, of which some mean something to MPI. */
  const char nothing = 0;
  int size, rank, *lens, *starts, all = 0, ok, failed = 0, i;
  char *received = NULL;

  MPI_Comm_size(comm, &size);
  lens = malloc(2 * (size_t)size * sizeof *lens);
  ok = lens != NULL && len <= INT_MAX;
  MPI_Allreduce(MPI_IN_PLACE, &ok, 1, MPI_INT, MPI_MIN, comm);
  if (!ok) {
    free(lens);
    return 1;
  }
  MPI_Comm_rank(comm, &rank);
  starts = lens + size;
  lens[rank] = (int)len;
  MPI_Allgather(MPI_IN_PLACE, 0, MPI_DATATYPE_NULL, lens, 1, MPI_INT, comm);
  for (i = 0; i < size; i++) {
    if (lens[i] > INT_MAX - all) failed = 1; /* On every rank. */
    if (failed) break;
    starts[i] = all;
    all += lens[i];
  }
  if (!failed) {
    received = malloc((size_t)all + 1);
    failed = received == NULL;
    MPI_Allreduce(MPI_IN_PLACE, &failed, 1, MPI_INT, MPI_MAX, comm);
  }
  if (!failed) {
    MPI_Allgatherv(len ? bytes : &nothing, (int)len, MPI_BYTE, received, lens, starts, MPI_BYTE, comm);
    for (i = 0; i < size; i++) collect(argument, received + starts[i], (size_t)lens[i]);
  }
  free(received);
  free(lens);
  return failed;
}

/* Whether all ranks have what is expected; if not, says what this one has. */
static int all_are(int is, const char *what, batchnorm_status status) {
  int all = is;
  if (!is) {
    char message[200] = "";
    batchnorm_last_message(message, sizeof message);
    fprintf(stderr, "%s: status %d %s\n", what, (int)status, message);
  }
  MPI_Allreduce(MPI_IN_PLACE, &all, 1, MPI_INT, MPI_MIN, MPI_COMM_WORLD);
  return all;
}

/* y, states, dx and dbeta of a problem. */
struct results {
  float *y, *dx, dgamma[CHANNELS], dbeta[CHANNELS];
  batchnorm_state states[CHANNELS];
};

static batchnorm_status run(const batchnorm_problem *problem, const float *x, const float *dy, double eps, uint64_t first,
                            const batchnorm_gather *gather, struct results *results) {
  const batchnorm_training_args training = {.size = sizeof training,
                                            .x = x,
                                            .eps = eps,
                                            .y = results->y,
                                            .states = results->states,
                                            .activation = BATCHNORM_RELU,
                                            .first = first,
                                            .gather = gather};
  const batchnorm_backward_args backward = {.size = sizeof backward,
                                            .x = x,
                                            .dy = dy,
                                            .states = results->states,
                                            .eps = eps,
                                            .dx = results->dx,
                                            .dgamma = results->dgamma,
                                            .dbeta = results->dbeta,
                                            .activation = BATCHNORM_RELU,
                                            .first = first,
                                            .gather = gather};
  const batchnorm_status status = batchnorm_training(problem, &training);
  return status == BATCHNORM_STATUS_OK ? batchnorm_backward(problem, &backward) : status;
}

int main(int argc, char **argv) {
  MPI_Comm comm = MPI_COMM_WORLD;
  const batchnorm_gather by_mpi = {.size = sizeof by_mpi, .context = &comm, .gather = gather};
  batchnorm_problem whole = {.size = sizeof whole, .layout = BATCHNORM_NHWC, .batch = 1, .channels = CHANNELS, .spatial = {SIDE, SIDE}};
  batchnorm_problem part = whole;
  static struct results alone, together;
  const size_t each = (size_t)SIDE * SIDE * CHANNELS;
  size_t granularity, first, len, i;
  float *x, *dy;
  int rank, size, same, right;
  batchnorm_status status;

  MPI_Init(&argc, &argv);
  MPI_Comm_rank(comm, &rank);
  MPI_Comm_size(comm, &size);

  /* Parts begin at multiples of the granularity; of many ranks some have none. */
  granularity = batchnorm_granularity(&whole);
  whole.batch = BLOCKS * granularity;
  first = (size_t)(BLOCKS * rank / size) * granularity;
  part.batch = (size_t)(BLOCKS * (rank + 1) / size) * granularity - first;

  len = whole.batch * each;
  x = malloc(len * sizeof *x);
  dy = malloc(len * sizeof *dy);
  alone.y = malloc(len * sizeof *x);
  alone.dx = malloc(len * sizeof *x);
  together.y = malloc(len * sizeof *x);
  together.dx = malloc(len * sizeof *x);
  if (!x || !dy || !alone.y || !alone.dx || !together.y || !together.dx) MPI_Abort(comm, 1);
  for (i = 0; i < len; i++) {
    x[i] = (float)(i * 2654435761u % 1009) / 16 - 20;
    dy[i] = (float)(i * 40503u % 97) / 32 - 1;
  }

  status = run(&whole, x, dy, 1e-5, 0, NULL, &alone);
  right = all_are(status == BATCHNORM_STATUS_OK, "alone", status);
  status = run(&part, x + first * each, dy + first * each, 1e-5, first, &by_mpi, &together);
  right &= all_are(status == BATCHNORM_STATUS_OK, "together", status);

  len = part.batch * each * sizeof *x;
  same = !memcmp(together.y, alone.y + first * each, len) && !memcmp(together.dx, alone.dx + first * each, len) &&
         !memcmp(together.dgamma, alone.dgamma, sizeof alone.dgamma) &&
         !memcmp(together.dbeta, alone.dbeta, sizeof alone.dbeta) &&
         !memcmp(together.states, alone.states, sizeof alone.states);
  right &= all_are(same, "bits", status);

  /* The last rank has an eps that is none: it hears of it, the others that someone has an error. */
  status = run(&part, x + first * each, dy + first * each, rank + 1 < size ? 1e-5 : -1, first, &by_mpi, &together);
  right &= all_are(status == (rank + 1 < size ? BATCHNORM_STATUS_GATHER : BATCHNORM_STATUS_EPSILON), "error", status);

  if (rank == 0 && right) printf("%d ranks: the bits of one process; an error of one is one of all\n", size);
  free(x);
  free(dy);
  free(alone.y);
  free(alone.dx);
  free(together.y);
  free(together.dx);
  MPI_Finalize();
  return !right;
}
