/*
 * AES-GCM over batches of ESP packets (RFC 4106). Keys lie expanded in slots which all threads of the process share;
 * which packet goes under which key, and with which sequence number, is decided above.
 */
#include "gcm.h"
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_SLOTS 16384 /* MAX_ASSOCIATIONS of engine/tables/association-state.ts; the two must be the same */
#define MAX_JOBS 1024
#define JOB_WORDS 6
#define ESP_HEADER 16 /* SPI, low half of the sequence number, IV */
#define MAX_AAD (1 << 20)

/* The words of a job. */
enum { HEADER, SOURCE, DESTINATION, LENGTH, SLOT, SEQUENCE_HIGH };

static const struct gcm_library *const libraries[] = {&gcm_ipsec_mb, &gcm_openssl};
#define LIBRARIES (sizeof libraries / sizeof libraries[0])

static _Atomic(struct gcm_key *) slots[MAX_SLOTS];

/*
 * A thread that uses keys. `turn` is odd while it is inside a batch, so that a key is wiped only when nobody can
 * hold it any more: what has begun before ends first, and what begins later no longer finds it.
 */
struct gcm_thread {
	_Atomic uint64_t turn;
	struct gcm_thread *next;
};
static struct gcm_thread *threads;
static pthread_mutex_t changing = PTHREAD_MUTEX_INITIALIZER; /* guards `threads`, and changes of `slots` */

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
	/* Sequentially consistent: no slot may be read before others can see that this thread reads. */
	atomic_fetch_add(&thread->turn, 1);
}

static void end(struct gcm_thread *thread)
{
	atomic_fetch_add_explicit(&thread->turn, 1, memory_order_release);
}

/* Waits until no batch is under way that began before. Holds `changing`. */
static void wait_for_batches(void)
{
	for (struct gcm_thread *thread = threads; thread; thread = thread->next) {
		uint64_t turn = atomic_load(&thread->turn);
		while ((turn & 1) && atomic_load(&thread->turn) == turn) sched_yield();
	}
}

/* --- Keys ------------------------------------------------------------------------------------------------------- */

static bool get_bytes_property(napi_env env, napi_value object, const char *name, uint8_t **data, size_t *count)
{
	napi_value value;
	if (napi_get_named_property(env, object, name, &value) != napi_ok) return false;
	return get_bytes(env, value, data, count);
}

/* The library that the options name, or the preferred one; throws and returns NULL when it is not to be had. */
static const struct gcm_library *choose(napi_env env, napi_value options)
{
	char name[16], text[96];
	if (!get_string_property(env, options, "library", name, sizeof name)) return NULL;
	for (size_t i = 0; i < LIBRARIES; i++)
		if ((!name[0] || strcmp(libraries[i]->name, name) == 0) && libraries[i]->usable()) return libraries[i];
	snprintf(text, sizeof text, "AES-GCM: %s is not available in this build on this CPU", name[0] ? name : "no library");
	throw_usage(env, text);
	return NULL;
}

static bool key_length_ok(size_t length)
{
	return length == 16 || length == 24 || length == 32;
}

/* gcmLibraries(): string[] – the preferred first. */
napi_value gcm_libraries(napi_env env, napi_callback_info info)
{
	(void)info;
	napi_value list, name;
	uint32_t count = 0;
	if (napi_create_array(env, &list) != napi_ok) return NULL;
	for (size_t i = 0; i < LIBRARIES; i++) {
		if (!libraries[i]->usable()) continue;
		napi_create_string_utf8(env, libraries[i]->name, NAPI_AUTO_LENGTH, &name);
		napi_set_element(env, list, count++, name);
	}
	return list;
}

/* gcmInstall({slot, key: Uint8Array, salt: Uint8Array, icv, esn, library?}): void */
napi_value gcm_install(napi_env env, napi_callback_info info)
{
	napi_value args[1];
	uint8_t *bytes, *salt;
	size_t length, salt_length;
	if (!arguments(env, info, 1, args, "gcmInstall")) return NULL;
	const struct gcm_library *library = choose(env, args[0]);
	if (!library) return NULL;
	int slot = get_int_property(env, args[0], "slot", -1);
	int icv = get_int_property(env, args[0], "icv", -1);
	if (!get_bytes_property(env, args[0], "key", &bytes, &length) ||
	    !get_bytes_property(env, args[0], "salt", &salt, &salt_length))
		return NULL;
	if (slot < 0 || slot >= MAX_SLOTS) return throw_usage(env, "gcmInstall: slot is not a number from 0 to 16383");
	if (!key_length_ok(length)) return throw_usage(env, "gcmInstall: key is not of 16, 24 or 32 bytes");
	if (salt_length != 4) return throw_usage(env, "gcmInstall: salt is not of 4 bytes");
	if (icv != 8 && icv != 12 && icv != 16) return throw_usage(env, "gcmInstall: icv is not 8, 12 or 16 bytes");
	struct gcm_key *key = library->expand(bytes, length);
	if (!key) return throw_errno(env, ENOMEM, "cannot expand a key for slot %d", slot);
	memcpy(key->salt, salt, 4);
	key->icv = (uint8_t)icv;
	key->esn = get_bool_property(env, args[0], "esn", false);
	pthread_mutex_lock(&changing);
	bool taken = atomic_load_explicit(&slots[slot], memory_order_relaxed) != NULL;
	if (!taken) atomic_store_explicit(&slots[slot], key, memory_order_release);
	pthread_mutex_unlock(&changing);
	if (!taken) return NULL;
	library->discard(key);
	return throw_usage(env, "gcmInstall: the slot holds a key");
}

/* gcmRemove(slot): void – returns when the key is wiped. */
napi_value gcm_remove(napi_env env, napi_callback_info info)
{
	napi_value args[1];
	uint32_t slot;
	if (!arguments(env, info, 1, args, "gcmRemove") || !get_u32(env, args[0], &slot)) return NULL;
	if (slot >= MAX_SLOTS) return throw_usage(env, "gcmRemove: slot is not a number from 0 to 16383");
	pthread_mutex_lock(&changing);
	struct gcm_key *key = atomic_exchange(&slots[slot], NULL);
	if (key) {
		wait_for_batches();
		key->library->discard(key);
	}
	pthread_mutex_unlock(&changing);
	return NULL;
}

/* --- Batches ---------------------------------------------------------------------------------------------------- */

/*
 * Looks up the keys of all jobs and checks what they point to, so that nothing is done when one of them is wrong.
 * Returns 0, -EFAULT, or -EINVAL where source and destination overlap without being the same.
 */
static int prepare(const struct weft *weft, const uint32_t *jobs, uint32_t count, bool sealing, struct gcm_key **keys)
{
	for (uint32_t i = 0; i < count; i++) {
		const uint32_t *job = jobs + i * JOB_WORDS;
		uint32_t source = job[SOURCE], destination = job[DESTINATION], length = job[LENGTH];
		if (job[SLOT] >= MAX_SLOTS) return -EFAULT;
		struct gcm_key *key = atomic_load_explicit(&slots[job[SLOT]], memory_order_acquire);
		if (!key) return -EFAULT;
		uint32_t with_icv = length + key->icv;
		if (with_icv < length || !in_memory(weft, job[HEADER], ESP_HEADER) ||
		    !in_memory(weft, source, sealing ? length : with_icv) ||
		    !in_memory(weft, destination, sealing ? with_icv : length))
			return -EFAULT;
		uint32_t apart = source > destination ? source - destination : destination - source;
		if (apart != 0 && apart < length) return -EINVAL;
		keys[i] = key;
	}
	return 0;
}

/* Nonce and additional data of one packet, in the form the libraries read. */
struct gcm_head {
	uint8_t iv[16]; /* GCM_IV bytes, and room to read 16 at once */
	uint8_t aad[16];
};

/* RFC 4106, sections 4 and 5: salt and IV; SPI and sequence number, of 64 bits with ESN. */
static void describe(const struct weft *weft, const uint32_t *job, const struct gcm_key *key, struct gcm_head *head,
                     struct gcm_text *text)
{
	const uint8_t *esp = weft->memory + job[HEADER];
	memcpy(head->iv, key->salt, 4);
	memcpy(head->iv + 4, esp + 8, 8);
	text->iv = head->iv;
	text->aad = esp;
	text->aad_length = 8;
	if (key->esn) {
		uint32_t high = __builtin_bswap32(job[SEQUENCE_HIGH]);
		memcpy(head->aad, esp, 4);
		memcpy(head->aad + 4, &high, 4);
		memcpy(head->aad + 8, esp + 4, 4);
		text->aad = head->aad;
		text->aad_length = 12;
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
	struct gcm_head head = {0};
	struct gcm_text text;
	int result = 0;
	for (uint32_t i = 0; i < count; i++) {
		const uint32_t *job = jobs + i * JOB_WORDS;
		if (i + 1 < count) look_ahead(weft, job + JOB_WORDS, keys + i + 1);
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
	struct gcm_head head = {0};
	struct gcm_text text;
	for (uint32_t i = 0; i < count; i++) {
		const uint32_t *job = jobs + i * JOB_WORDS;
		if (i + 1 < count) look_ahead(weft, job + JOB_WORDS, keys + i + 1);
		describe(weft, job, keys[i], &head, &text);
		text.tag = weft->memory + job[SOURCE] + job[LENGTH];
		results[i] = keys[i]->library->open(keys[i], &text);
		if (!results[i]) memset(text.destination, 0, text.length);
	}
}

/* gcmSeal(jobs: Uint32Array, count): number – 0 or a negative errno. */
napi_value gcm_seal(napi_env env, napi_callback_info info)
{
	napi_value args[2];
	uint32_t *jobs, count;
	size_t words;
	struct gcm_key *keys[MAX_JOBS];
	if (!arguments(env, info, 2, args, "gcmSeal")) return NULL;
	if (!get_words(env, args[0], &jobs, &words) || !get_u32(env, args[1], &count)) return NULL;
	if (count > MAX_JOBS || count > words / JOB_WORDS) return throw_usage(env, "gcmSeal: count exceeds 1024 or the array");
	const struct weft *weft = weft_of(env);
	begin(weft->gcm);
	int result = prepare(weft, jobs, count, true, keys);
	if (result == 0) result = seal_all(weft, jobs, count, keys);
	end(weft->gcm);
	return make_int(env, result);
}

/* gcmOpen(jobs: Uint32Array, count, results: Uint32Array): number – 0 or a negative errno. */
napi_value gcm_open(napi_env env, napi_callback_info info)
{
	napi_value args[3];
	uint32_t *jobs, *results, count;
	size_t words, room;
	struct gcm_key *keys[MAX_JOBS];
	if (!arguments(env, info, 3, args, "gcmOpen")) return NULL;
	if (!get_words(env, args[0], &jobs, &words) || !get_u32(env, args[1], &count) ||
	    !get_words(env, args[2], &results, &room))
		return NULL;
	if (count > MAX_JOBS || count > words / JOB_WORDS || count > room)
		return throw_usage(env, "gcmOpen: count exceeds 1024 or an array");
	const struct weft *weft = weft_of(env);
	begin(weft->gcm);
	int result = prepare(weft, jobs, count, false, keys);
	if (result == 0) open_all(weft, jobs, count, keys, results);
	end(weft->gcm);
	return make_int(env, result);
}

/* --- One operation of any shape --------------------------------------------------------------------------------- */

struct vector {
	uint8_t *key, *iv, *aad, *text;
	size_t key_length, iv_length, aad_length, length;
	int icv;
	bool encrypt;
};

/* The operation, its result in a new Uint8Array; null when the tag is wrong. */
static napi_value run_vector(napi_env env, const struct gcm_library *library, const struct vector *vector)
{
	napi_value buffer, result;
	uint8_t tag[GCM_TAG];
	void *out = NULL;
	size_t icv = (size_t)vector->icv;
	size_t plain = vector->encrypt ? vector->length : vector->length - icv;
	size_t size = vector->encrypt ? plain + icv : plain;
	if (napi_create_arraybuffer(env, size, &out, &buffer) != napi_ok)
		return throw_errno(env, ENOMEM, "gcmVector: cannot hold the result");
	uint8_t *destination = out ? out : tag; /* of no bytes */
	struct gcm_key *key = library->expand(vector->key, vector->key_length);
	if (!key) return throw_errno(env, ENOMEM, "gcmVector: cannot expand the key");
	struct gcm_text text = {
		.iv = vector->iv,
		.aad = vector->aad,
		.aad_length = vector->aad_length,
		.source = vector->length > 0 ? vector->text : tag,
		.destination = destination,
		.length = plain,
		.tag = vector->encrypt ? tag : vector->text + plain,
		.tag_length = vector->encrypt ? sizeof tag : icv,
	};
	bool good = vector->encrypt ? library->seal(key, &text) : library->open(key, &text);
	library->discard(key);
	if (good && vector->encrypt) memcpy(destination + plain, tag, icv);
	if (good) {
		napi_create_typedarray(env, napi_uint8_array, size, buffer, 0, &result);
	} else {
		memset(destination, 0, size);
		napi_get_null(env, &result);
	}
	return result;
}

/* gcmVector({library?, key, iv, aad, text, icv, encrypt}): Uint8Array | null – for test vectors, not for packets. */
napi_value gcm_vector(napi_env env, napi_callback_info info)
{
	napi_value args[1];
	struct vector vector;
	if (!arguments(env, info, 1, args, "gcmVector")) return NULL;
	const struct gcm_library *library = choose(env, args[0]);
	if (!library) return NULL;
	if (!get_bytes_property(env, args[0], "key", &vector.key, &vector.key_length) ||
	    !get_bytes_property(env, args[0], "iv", &vector.iv, &vector.iv_length) ||
	    !get_bytes_property(env, args[0], "aad", &vector.aad, &vector.aad_length) ||
	    !get_bytes_property(env, args[0], "text", &vector.text, &vector.length))
		return NULL;
	vector.icv = get_int_property(env, args[0], "icv", -1);
	vector.encrypt = get_bool_property(env, args[0], "encrypt", true);
	if (!key_length_ok(vector.key_length)) return throw_usage(env, "gcmVector: key is not of 16, 24 or 32 bytes");
	if (vector.iv_length != GCM_IV) return throw_usage(env, "gcmVector: iv is not of 12 bytes");
	if (vector.icv < 4 || vector.icv > GCM_TAG) return throw_usage(env, "gcmVector: icv is not 4 to 16 bytes");
	if (vector.aad_length > MAX_AAD || vector.length > MAX_AAD)
		return throw_usage(env, "gcmVector: aad or text is longer than 1 MiB");
	if (!vector.encrypt && vector.length < (size_t)vector.icv)
		return throw_usage(env, "gcmVector: text is shorter than its icv");
	return run_vector(env, library, &vector);
}
