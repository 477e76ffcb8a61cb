/*
 * The slots with keys that all threads of the process share, and batches of ESP packets (RFC 4106) under them. Nothing
 * of Node here: native-bindings/test/gcm.c runs this file alone.
 */
#include "gcm.h"
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#define ESP_HEADER 16 /* SPI, low half of the sequence number, IV */

/* The words of a job. */
enum { HEADER, SOURCE, DESTINATION, LENGTH, SLOT, SEQUENCE_HIGH };

static _Atomic(struct gcm_key *) slots[GCM_SLOTS];

/*
 * A thread that uses keys. `turn` is odd while it is inside a batch, so that a key is wiped only when nobody can
 * hold it any more: what has begun before ends first, and what begins later no longer finds it. For that the turn and
 * the slots are read and written in one order for all (seq_cst), which costs one locked instruction a batch.
 */
struct gcm_thread {
	_Atomic uint64_t turn;
	struct gcm_thread *next;
};
static struct gcm_thread *threads;
static pthread_mutex_t changing = PTHREAD_MUTEX_INITIALIZER; /* guards `threads` and what hangs on it */

struct gcm_thread *gcm_join(void)
{
	struct gcm_thread *thread = calloc(1, sizeof *thread);
	if (!thread) return NULL;
	pthread_mutex_lock(&changing);
	thread->next = threads;
	threads = thread;
	pthread_mutex_unlock(&changing);
	return thread;
}

void gcm_leave(struct gcm_thread *thread)
{
	pthread_mutex_lock(&changing);
	for (struct gcm_thread **at = &threads; *at; at = &(*at)->next) {
		if (*at != thread) continue;
		*at = thread->next;
		break;
	}
	pthread_mutex_unlock(&changing);
	free(thread);
}

static void begin(struct gcm_thread *thread)
{
	atomic_fetch_add(&thread->turn, 1);
}

static void end(struct gcm_thread *thread)
{
	uint64_t turn = atomic_load_explicit(&thread->turn, memory_order_relaxed); /* nobody else writes it */
	atomic_store_explicit(&thread->turn, turn + 1, memory_order_release);
}

/* Waits until no batch is under way that began before. Holds `changing`. */
static void wait_for_batches(void)
{
	for (struct gcm_thread *thread = threads; thread; thread = thread->next) {
		uint64_t turn = atomic_load(&thread->turn);
		while ((turn & 1) && atomic_load(&thread->turn) == turn) sched_yield();
	}
}

bool gcm_put(uint32_t slot, struct gcm_key *key)
{
	struct gcm_key *none = NULL;
	return atomic_compare_exchange_strong(&slots[slot], &none, key);
}

void gcm_wipe(uint32_t slot)
{
	pthread_mutex_lock(&changing);
	struct gcm_key *key = atomic_exchange(&slots[slot], NULL);
	if (key) {
		wait_for_batches();
		key->library->discard(key);
	}
	pthread_mutex_unlock(&changing);
}

/*
 * Looks up the keys of all jobs and checks what they point to, so that nothing is done when one of them is wrong.
 * Returns 0, -EFAULT, or -EINVAL where source and destination overlap without being the same.
 */
static int prepare(const struct weft *weft, const uint32_t *jobs, uint32_t count, bool sealing, struct gcm_key **keys)
{
	for (uint32_t i = 0; i < count; i++) {
		const uint32_t *job = jobs + i * GCM_JOB_WORDS;
		uint32_t source = job[SOURCE], destination = job[DESTINATION], length = job[LENGTH];
		if (job[SLOT] >= GCM_SLOTS) return -EFAULT;
		struct gcm_key *key = atomic_load(&slots[job[SLOT]]);
		if (!key) return -EFAULT;
		/* Where this overflows, the length alone is too much already, for the end without an ICV. */
		uint32_t with_icv = length + key->icv;
		if (!in_memory(weft, job[HEADER], ESP_HEADER) ||
		    !in_memory(weft, source, sealing ? length : with_icv) ||
		    !in_memory(weft, destination, sealing ? with_icv : length))
			return -EFAULT;
		uint32_t apart = source > destination ? source - destination : destination - source;
		if (apart != 0 && apart < length) return -EINVAL;
		keys[i] = key;
	}
	return 0;
}

/* Nonce and additional data of one packet. */
typedef uint32_t quad __attribute__((vector_size(16)));
struct gcm_head {
	quad iv; /* GCM_IV bytes, and four of nothing */
	quad aad;
};

/*
 * RFC 4106, sections 4 and 5: salt and IV; SPI and sequence number, of 64 bits with ESN. Each is stored as one
 * vector, for the library loads it as one, and a load that spans several fresh stores waits for them: 64-byte packets
 * took 42 ns that way, and take 27.
 */
static void describe(const struct weft *weft, const uint32_t *job, const struct gcm_key *key, struct gcm_head *head,
                     struct gcm_text *text)
{
	uint32_t esp[ESP_HEADER / 4];
	memcpy(esp, weft->memory + job[HEADER], sizeof esp);
	head->iv = (quad){key->salt, esp[2], esp[3], 0};
	text->iv = (const uint8_t *)&head->iv;
	if (key->esn) {
		head->aad = (quad){esp[0], __builtin_bswap32(job[SEQUENCE_HIGH]), esp[1], 0};
		text->aad = (const uint8_t *)&head->aad;
		text->aad_length = 12;
	} else {
		text->aad = weft->memory + job[HEADER];
		text->aad_length = 8;
	}
	text->source = weft->memory + job[SOURCE];
	text->destination = weft->memory + job[DESTINATION];
	text->length = job[LENGTH];
	text->tag_length = key->icv;
}

/* What the next job will touch, unless the current one has it in the cache already. */
static void look_ahead(const struct weft *weft, const uint32_t *job, struct gcm_key *const *key)
{
	const uint8_t *source = weft->memory + job[SOURCE];
	__builtin_prefetch(source);
	__builtin_prefetch(source + 64);
	if (key[0] != key[-1] && key[0]->prefetch) key[0]->prefetch(key[0], job[LENGTH]);
}

static int seal_all(const struct weft *weft, const uint32_t *jobs, uint32_t count, struct gcm_key *const *keys)
{
	struct gcm_head head;
	struct gcm_text text;
	int result = 0;
	for (uint32_t i = 0; i < count; i++) {
		const uint32_t *job = jobs + i * GCM_JOB_WORDS;
		if (i + 1 < count) look_ahead(weft, job + GCM_JOB_WORDS, keys + i + 1);
		describe(weft, job, keys[i], &head, &text);
		text.tag = text.destination + text.length;
		if (keys[i]->library->seal(keys[i], &text)) continue;
		/* In place the plaintext would still be there. */
		memset(text.destination, 0, text.length + text.tag_length);
		result = -EIO;
	}
	return result;
}

static void open_all(const struct weft *weft, const uint32_t *jobs, uint32_t count, struct gcm_key *const *keys,
                     uint32_t *results)
{
	struct gcm_head head;
	struct gcm_text text;
	for (uint32_t i = 0; i < count; i++) {
		const uint32_t *job = jobs + i * GCM_JOB_WORDS;
		if (i + 1 < count) look_ahead(weft, job + GCM_JOB_WORDS, keys + i + 1);
		describe(weft, job, keys[i], &head, &text);
		text.tag = weft->memory + job[SOURCE] + job[LENGTH];
		results[i] = keys[i]->library->open(keys[i], &text);
		if (!results[i]) memset(text.destination, 0, text.length);
	}
}

int gcm_seal_batch(const struct weft *weft, const uint32_t *jobs, uint32_t count)
{
	struct gcm_key *keys[GCM_JOBS];
	begin(weft->gcm);
	int result = prepare(weft, jobs, count, true, keys);
	if (result == 0) result = seal_all(weft, jobs, count, keys);
	end(weft->gcm);
	return result;
}

int gcm_open_batch(const struct weft *weft, const uint32_t *jobs, uint32_t count, uint32_t *results)
{
	struct gcm_key *keys[GCM_JOBS];
	begin(weft->gcm);
	int result = prepare(weft, jobs, count, false, keys);
	if (result == 0) open_all(weft, jobs, count, keys, results);
	end(weft->gcm);
	return result;
}
