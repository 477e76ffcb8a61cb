/*
 * AES-GCM by the OpenSSL that node itself is linked with. It is declared here, and weakly: a node that was built
 * with another library, or that hides its own, has no such symbols, and then this library is not offered.
 * A context is state, so each key has a lock.
 */
#include "gcm.h"
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

typedef struct evp_cipher_ctx_st EVP_CIPHER_CTX;
typedef struct evp_cipher_st EVP_CIPHER;
typedef struct engine_st ENGINE;

/* openssl/evp.h */
#define EVP_CTRL_AEAD_GET_TAG 0x10
#define EVP_CTRL_AEAD_SET_TAG 0x11
#define WEAK extern __attribute__((weak, visibility("default")))
WEAK EVP_CIPHER_CTX *EVP_CIPHER_CTX_new(void);
WEAK void EVP_CIPHER_CTX_free(EVP_CIPHER_CTX *context);
WEAK int EVP_CIPHER_CTX_ctrl(EVP_CIPHER_CTX *context, int type, int argument, void *pointer);
WEAK const EVP_CIPHER *EVP_aes_128_gcm(void);
WEAK const EVP_CIPHER *EVP_aes_192_gcm(void);
WEAK const EVP_CIPHER *EVP_aes_256_gcm(void);
WEAK int EVP_CipherInit_ex(EVP_CIPHER_CTX *context, const EVP_CIPHER *cipher, ENGINE *engine, const unsigned char *key,
                           const unsigned char *iv, int encrypt);
WEAK int EVP_CipherUpdate(EVP_CIPHER_CTX *context, unsigned char *out, int *out_length, const unsigned char *in,
                          int length);
WEAK int EVP_CipherFinal_ex(EVP_CIPHER_CTX *context, unsigned char *out, int *out_length);
WEAK void ERR_clear_error(void);

struct openssl_key {
	struct gcm_key head;
	pthread_mutex_t lock;
	EVP_CIPHER_CTX *sealing;
	EVP_CIPHER_CTX *opening;
};

static bool usable(void)
{
	return EVP_CIPHER_CTX_new && EVP_CIPHER_CTX_free && EVP_CIPHER_CTX_ctrl && EVP_aes_128_gcm && EVP_aes_192_gcm &&
	       EVP_aes_256_gcm && EVP_CipherInit_ex && EVP_CipherUpdate && EVP_CipherFinal_ex && ERR_clear_error;
}

static void release(struct openssl_key *key)
{
	/* OpenSSL wipes what a context holds before it frees it. */
	if (key->sealing) EVP_CIPHER_CTX_free(key->sealing);
	if (key->opening) EVP_CIPHER_CTX_free(key->opening);
	pthread_mutex_destroy(&key->lock);
	explicit_bzero(key, sizeof *key);
	free(key);
}

static void discard(struct gcm_key *key)
{
	release((struct openssl_key *)key);
}

static struct gcm_key *expand(const uint8_t *bytes, size_t length)
{
	const EVP_CIPHER *cipher =
		length == 16 ? EVP_aes_128_gcm() : length == 24 ? EVP_aes_192_gcm() : EVP_aes_256_gcm();
	struct openssl_key *key = calloc(1, sizeof *key);
	if (!key) return NULL;
	key->head.library = &gcm_openssl;
	pthread_mutex_init(&key->lock, NULL);
	key->sealing = EVP_CIPHER_CTX_new();
	key->opening = EVP_CIPHER_CTX_new();
	if (key->sealing && key->opening && EVP_CipherInit_ex(key->sealing, cipher, NULL, bytes, NULL, 1) == 1 &&
	    EVP_CipherInit_ex(key->opening, cipher, NULL, bytes, NULL, 0) == 1)
		return &key->head;
	release(key);
	return NULL;
}

/* The IV, the additional data, and the text unless it is empty. */
static bool update(EVP_CIPHER_CTX *context, const struct gcm_text *text)
{
	int done = 0;
	if (EVP_CipherInit_ex(context, NULL, NULL, NULL, text->iv, -1) != 1) return false;
	if (text->aad_length > 0 && EVP_CipherUpdate(context, NULL, &done, text->aad, (int)text->aad_length) != 1)
		return false;
	return text->length == 0 ||
	       EVP_CipherUpdate(context, text->destination, &done, text->source, (int)text->length) == 1;
}

static bool seal_text(struct gcm_key *head, const struct gcm_text *text)
{
	struct openssl_key *key = (struct openssl_key *)head;
	uint8_t none[GCM_TAG];
	int done = 0;
	pthread_mutex_lock(&key->lock);
	bool sealed = update(key->sealing, text) && EVP_CipherFinal_ex(key->sealing, none, &done) == 1 &&
	              EVP_CIPHER_CTX_ctrl(key->sealing, EVP_CTRL_AEAD_GET_TAG, (int)text->tag_length, text->tag) == 1;
	pthread_mutex_unlock(&key->lock);
	if (!sealed) ERR_clear_error();
	return sealed;
}

static bool open_text(struct gcm_key *head, const struct gcm_text *text)
{
	struct openssl_key *key = (struct openssl_key *)head;
	uint8_t none[GCM_TAG];
	int done = 0;
	pthread_mutex_lock(&key->lock);
	/* Final compares the tags, in constant time. */
	bool opened = update(key->opening, text) &&
	              EVP_CIPHER_CTX_ctrl(key->opening, EVP_CTRL_AEAD_SET_TAG, (int)text->tag_length, text->tag) == 1 &&
	              EVP_CipherFinal_ex(key->opening, none, &done) == 1;
	pthread_mutex_unlock(&key->lock);
	/* Errors stay in the thread's queue otherwise, and node:crypto would find them there. */
	if (!opened) ERR_clear_error();
	return opened;
}

const struct gcm_library gcm_openssl = {"openssl", usable, expand, discard, seal_text, open_text};
