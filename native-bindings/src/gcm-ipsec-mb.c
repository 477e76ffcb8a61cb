/*
 * AES-GCM by libipsec-mb, the library of VPP and DPDK, linked statically. setup.mjs defines WEFT_IPSEC_MB where its
 * header and archive are. Its direct GCM calls keep their state on the caller's stack, so that one manager, which
 * holds nothing but their addresses for this CPU, serves all threads.
 *
 * Before 1.4 each operation also clears one word that all threads share (imb_errno; issue 112 of intel-ipsec-mb), as
 * Debian 12's 1.3 does: two threads that seal 1,400 bytes at the same time take 108 ns a packet then, instead of 75.
 */
#include "gcm.h"

#ifdef WEFT_IPSEC_MB
#include <intel-ipsec-mb.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

struct ipsec_mb_key {
	struct gcm_key head;
	aes_gcm_enc_dec_t seal;
	aes_gcm_enc_dec_t open;
	/* The library stores to it with aligned instructions, which its header demands only where LINUX is defined. */
	_Alignas(64) struct gcm_key_data data;
};

static IMB_MGR *manager;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void start(void)
{
	IMB_MGR *fresh = alloc_mb_mgr(0);
	if (!fresh) return;
	IMB_ARCH arch = IMB_ARCH_NONE;
	/* Without AES-NI the library would emulate it, slower than OpenSSL and with tables that leak through the cache. */
	bool able = (fresh->features & IMB_CPUFLAGS_SSE) == IMB_CPUFLAGS_SSE;
	if (able) init_mb_mgr_auto(fresh, &arch);
	able = able && arch >= IMB_ARCH_SSE;
#ifdef IMB_FEATURE_SELF_TEST
	if (fresh->features & IMB_FEATURE_SELF_TEST) able = able && (fresh->features & IMB_FEATURE_SELF_TEST_PASS);
#endif
	if (able) manager = fresh;
	else free_mb_mgr(fresh);
}

static bool usable(void)
{
	pthread_once(&once, start);
	return manager != NULL;
}

/*
 * The AES round keys, and of the powers of the hash key, which lie with the first one last, as many as are needed. Makes
 * 130 ns of 173 with 10,000 keys in random order and 1,400 bytes; with 1,000 keys, which fit the L2 cache, little.
 */
static void prefetch(const struct gcm_key *head, size_t length)
{
	const struct ipsec_mb_key *key = (const struct ipsec_mb_key *)head;
	const char *rounds = (const char *)key->data.expanded_keys;
	for (size_t at = 0; at < sizeof key->data.expanded_keys; at += 64) __builtin_prefetch(rounds + at);
	const char *end = (const char *)&key->data + sizeof key->data;
	size_t powers = length + 64;
	if (powers > sizeof key->data.ghash_keys) powers = sizeof key->data.ghash_keys;
	for (size_t at = 64; at <= powers; at += 64) __builtin_prefetch(end - at);
}

static struct gcm_key *expand(const uint8_t *bytes, size_t length)
{
	struct ipsec_mb_key *key = aligned_alloc(64, sizeof *key);
	if (!key) return NULL;
	memset(key, 0, sizeof *key);
	key->head.library = &gcm_ipsec_mb;
	key->head.prefetch = prefetch;
	if (length == 16) {
		key->seal = manager->gcm128_enc;
		key->open = manager->gcm128_dec;
		manager->gcm128_pre(bytes, &key->data);
	} else if (length == 24) {
		key->seal = manager->gcm192_enc;
		key->open = manager->gcm192_dec;
		manager->gcm192_pre(bytes, &key->data);
	} else {
		key->seal = manager->gcm256_enc;
		key->open = manager->gcm256_dec;
		manager->gcm256_pre(bytes, &key->data);
	}
	return &key->head;
}

static void discard(struct gcm_key *head)
{
	explicit_bzero(head, sizeof(struct ipsec_mb_key));
	free(head);
}

static bool seal_text(struct gcm_key *head, const struct gcm_text *text)
{
	struct ipsec_mb_key *key = (struct ipsec_mb_key *)head;
	struct gcm_context_data state;
	key->seal(&key->data, &state, text->destination, text->source, text->length, text->iv, text->aad, text->aad_length,
	          text->tag, text->tag_length);
	return true;
}

static bool open_text(struct gcm_key *head, const struct gcm_text *text)
{
	struct ipsec_mb_key *key = (struct ipsec_mb_key *)head;
	struct gcm_context_data state;
	uint8_t tag[GCM_TAG];
	key->open(&key->data, &state, text->destination, text->source, text->length, text->iv, text->aad, text->aad_length,
	          tag, sizeof tag);
	/* In constant time: how many bytes were right must not show. */
	uint8_t difference = 0;
	for (size_t i = 0; i < text->tag_length; i++) difference |= tag[i] ^ text->tag[i];
	return difference == 0;
}
#else
static bool usable(void)
{
	return false;
}

static struct gcm_key *expand(const uint8_t *bytes, size_t length)
{
	(void)bytes;
	(void)length;
	return NULL;
}

static void discard(struct gcm_key *key)
{
	(void)key;
}

static bool seal_text(struct gcm_key *key, const struct gcm_text *text)
{
	(void)key;
	(void)text;
	return false;
}

#define open_text seal_text
#endif

const struct gcm_library gcm_ipsec_mb = {"ipsec-mb", usable, expand, discard, seal_text, open_text};
