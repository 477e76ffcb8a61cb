/*
 * The batches of gcm-batch.c without Node and without a cipher: what a library refuses leaves no plaintext, jobs stay
 * within the memory, and keys that go while threads use them are used by nobody afterwards. Built and run by
 * sanitize.mjs, under AddressSanitizer and again under ThreadSanitizer.
 */
#include "../src/gcm-batch.c"
#include "../src/gcm-openssl.c"
#include <stdio.h>

/* A toy: it adds the key to each byte, and the sum of all bytes and additional data is the tag. */
struct toy_key {
	struct gcm_key head;
	uint8_t pad;
	bool refuses;
};

static uint8_t sum(const struct toy_key *key, const struct gcm_text *text, const uint8_t *plain)
{
	uint8_t total = key->pad;
	for (size_t i = 0; i < GCM_IV; i++) total = (uint8_t)(total + text->iv[i]);
	for (size_t i = 0; i < text->aad_length; i++) total = (uint8_t)(total + text->aad[i] * (i + 1));
	for (size_t i = 0; i < text->length; i++) total = (uint8_t)(total + plain[i]);
	return total;
}

static bool toy_seal(struct gcm_key *head, const struct gcm_text *text)
{
	const struct toy_key *key = (const struct toy_key *)head;
	if (key->refuses) return false;
	uint8_t total = sum(key, text, text->source);
	for (size_t i = 0; i < text->length; i++) text->destination[i] = (uint8_t)(text->source[i] + key->pad);
	memset(text->tag, total, text->tag_length);
	return true;
}

static bool toy_open(struct gcm_key *head, const struct gcm_text *text)
{
	const struct toy_key *key = (const struct toy_key *)head;
	for (size_t i = 0; i < text->length; i++) text->destination[i] = (uint8_t)(text->source[i] - key->pad);
	uint8_t total = sum(key, text, text->destination);
	for (size_t i = 0; i < text->tag_length; i++)
		if (text->tag[i] != total) return false;
	return true;
}

static void toy_discard(struct gcm_key *head)
{
	memset(head, 0xee, sizeof(struct toy_key)); /* a sanitizer, or a wrong sum, would tell of a use after this */
	free(head);
}

static const struct gcm_library toy = {.name = "toy", .discard = toy_discard, .seal = toy_seal, .open = toy_open};

static void install(uint32_t slot, uint8_t pad, uint8_t icv, bool esn, bool refuses)
{
	struct toy_key *key = calloc(1, sizeof *key);
	if (!key) abort();
	*key = (struct toy_key){.head = {.library = &toy, .salt = 0x01020304, .icv = icv, .esn = esn},
	                        .pad = pad,
	                        .refuses = refuses};
	if (!gcm_put(slot, &key->head)) abort();
}

static void check(bool true_of_it, const char *what)
{
	if (true_of_it) return;
	printf("gcm: not so: %s\n", what);
	exit(1);
}

static bool all(const uint8_t *bytes, size_t length, uint8_t value)
{
	for (size_t i = 0; i < length; i++)
		if (bytes[i] != value) return false;
	return true;
}

static struct weft attach(size_t size)
{
	struct weft weft = {.memory = malloc(size), .size = size, .gcm = gcm_join()};
	if (!weft.memory || !weft.gcm) abort();
	memset(weft.memory, 7, size);
	return weft;
}

static void detach(struct weft *weft)
{
	gcm_leave(weft->gcm);
	free(weft->memory);
}

static void refused_is_zeros(void)
{
	struct weft weft = attach(400);
	install(1, 3, 16, false, false);
	install(2, 3, 16, false, true);
	const uint32_t jobs[] = {0, 16, 16, 50, 1, 0, 100, 116, 116, 50, 2, 0, 200, 216, 216, 50, 1, 0};
	check(gcm_seal_batch(&weft, jobs, 3) == -EIO, "a refusal is EIO");
	check(all(weft.memory + 116, 66, 0), "what was refused is zeros, its ICV too");
	check(all(weft.memory + 16, 50, 10) && all(weft.memory + 216, 50, 10), "its neighbours are sealed");
	check(all(weft.memory + 182, 18, 7), "nothing behind it is touched");
	gcm_wipe(1);
	gcm_wipe(2);
	gcm_wipe(2);
	detach(&weft);
}

/* Every length that ends where the memory ends, and one more, in and out of place. */
static void within_the_memory(void)
{
	for (uint32_t icv = 8; icv <= 16; icv += 4) {
		install(9, 5, (uint8_t)icv, icv == 12, false);
		for (uint32_t length = 0; length < 40; length++) {
			uint32_t size = 16 + length + icv;
			struct weft weft = attach(size);
			uint32_t job[] = {0, 16, 16, length, 9, 77};
			uint32_t result = 2;
			check(gcm_seal_batch(&weft, job, 1) == 0, "sealed at the end of the memory");
			check(gcm_open_batch(&weft, job, 1, &result) == 0 && result == 1, "opened again");
			check(all(weft.memory + 16, length, 7), "what was sealed came back");
			job[3]++;
			check(gcm_seal_batch(&weft, job, 1) == -EFAULT, "one byte too many to seal");
			check(gcm_open_batch(&weft, job, 1, &result) == -EFAULT, "one byte too many to open");
			const uint32_t wrong[][6] = {
				{size - 15, 16, 16, 0, 9, 0},     {0xffffffff, 16, 16, 0, 9, 0},     {0, 0xffffffff, 16, 1, 9, 0},
				{0, 16, 0xffffffff, 0, 9, 0},     {0, 16, 16, 0xffffffff, 9, 0},     {0, 0, 0, 0xfffffff0, 9, 0},
				{0, 16, 16, 0, GCM_SLOTS, 0},     {0, 16, 16, 0, 0xffffffff, 0},     {0, 16, 16, 0, 8, 0},
			};
			for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++)
				check(gcm_seal_batch(&weft, wrong[i], 1) == -EFAULT, "a job that points outside");
			detach(&weft);
		}
		gcm_wipe(9);
	}
}

#define ROUNDS 300
static atomic_bool done;

/* Seals and opens in its own memory under keys that come and go; a key that is there gives back what went in. */
static void *user(void *unused)
{
	(void)unused;
	struct weft weft = attach(16 * 100);
	uint32_t jobs[16 * GCM_JOB_WORDS], results[16];
	for (uint32_t i = 0; i < 16; i++)
		memcpy(jobs + i * GCM_JOB_WORDS, (uint32_t[]){i * 100, i * 100 + 16, i * 100 + 16, 60, 20 + i % 2, i}, 24);
	while (!atomic_load(&done)) {
		int sealed = gcm_seal_batch(&weft, jobs, 16);
		check(sealed == 0 || sealed == -EFAULT, "sealed, or no key");
		if (sealed != 0) continue;
		/* The keys of these two slots are always the same, whatever becomes of them between the two calls. */
		int opened;
		while ((opened = gcm_open_batch(&weft, jobs, 16, results)) == -EFAULT && !atomic_load(&done)) {
		}
		if (opened != 0) break;
		for (uint32_t i = 0; i < 16; i++) {
			check(results[i] == 1, "opened what was sealed");
			check(all(weft.memory + i * 100 + 16, 60, 7), "with what was in it");
		}
	}
	detach(&weft);
	return NULL;
}

static void keys_that_go(void)
{
	pthread_t users[3];
	for (size_t i = 0; i < 3; i++)
		if (pthread_create(&users[i], NULL, user, NULL) != 0) abort();
	for (uint32_t round = 0; round < ROUNDS; round++) {
		uint32_t slot = 20 + round % 2;
		gcm_wipe(slot);
		install(slot, (uint8_t)(slot * 9), 16, slot == 20, false);
		if (round % 64 == 0) sched_yield();
	}
	atomic_store(&done, true);
	for (size_t i = 0; i < 3; i++) pthread_join(users[i], NULL);
	gcm_wipe(20);
	gcm_wipe(21);
}

int main(void)
{
	check(!gcm_openssl.usable(), "OpenSSL is not offered by a process that has none");
	refused_is_zeros();
	within_the_memory();
	keys_that_go();
	puts("gcm: sound");
	return 0;
}
