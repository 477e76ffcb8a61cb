/* Files as memory: what lies there outlives the process. */
#include "weft.h"
#include <fcntl.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>

struct mapping {
	void *memory;
	size_t bytes;
};

static void unmap(napi_env env, void *data, void *hint)
{
	struct mapping *mapping = hint;
	(void)env;
	(void)data;
	munmap(mapping->memory, mapping->bytes);
	free(mapping);
}

static bool get_size(napi_env env, napi_value value, off_t *bytes)
{
	int64_t wanted;
	if (napi_get_value_int64(env, value, &wanted) == napi_ok && wanted > 0 && wanted <= (int64_t)1 << 40) {
		*bytes = (off_t)wanted;
		return true;
	}
	throw_usage(env, "expected a size in bytes");
	return false;
}

/* fileLock(fd): boolean – flock(2), exclusive, without waiting; false when another process holds it. */
napi_value file_lock(napi_env env, napi_callback_info info)
{
	napi_value args[1];
	napi_value locked = NULL;
	int fd;
	if (!arguments(env, info, 1, args, "fileLock") || !get_int(env, args[0], &fd)) return NULL;
	bool held = flock(fd, LOCK_EX | LOCK_NB) == 0;
	if (!held && errno != EWOULDBLOCK) return throw_errno(env, errno, "cannot lock the file");
	napi_get_boolean(env, held, &locked);
	return locked;
}

/* fileUnlock(fd): void – for closing is not enough while the file is mapped. */
napi_value file_unlock(napi_env env, napi_callback_info info)
{
	napi_value args[1];
	int fd;
	if (!arguments(env, info, 1, args, "fileUnlock") || !get_int(env, args[0], &fd)) return NULL;
	if (flock(fd, LOCK_UN) < 0) return throw_errno(env, errno, "cannot unlock the file");
	return NULL;
}

/* fileReserve(fd, bytes): void – makes the file at least so long, and takes the room for it. */
napi_value file_reserve(napi_env env, napi_callback_info info)
{
	napi_value args[2];
	off_t bytes;
	int fd;
	if (!arguments(env, info, 2, args, "fileReserve") || !get_int(env, args[0], &fd)) return NULL;
	if (!get_size(env, args[1], &bytes)) return NULL;
	/* Without room behind every page, writing to the mapping would end the process (SIGBUS). */
	int error = posix_fallocate(fd, 0, bytes);
	if (error) return throw_errno(env, error, "cannot take %lld bytes", (long long)bytes);
	return NULL;
}

/*
 * fileMap(fd, bytes): ArrayBuffer – a mapping of its own, unmapped when the buffer is collected. Two buffers over one
 * mapping are more than V8 takes, so each call maps anew.
 */
napi_value file_map(napi_env env, napi_callback_info info)
{
	napi_value args[2];
	napi_value buffer;
	struct stat status;
	off_t bytes;
	int fd;
	if (!arguments(env, info, 2, args, "fileMap") || !get_int(env, args[0], &fd)) return NULL;
	if (!get_size(env, args[1], &bytes)) return NULL;
	if (fstat(fd, &status) < 0) return throw_errno(env, errno, "cannot map the file");
	if (status.st_size < bytes) return throw_usage(env, "fileMap: the file is shorter");
	struct mapping *mapping = malloc(sizeof *mapping);
	if (!mapping) return throw_errno(env, ENOMEM, "cannot map the file");
	mapping->bytes = (size_t)bytes;
	/* Populated, so that no packet waits for a page fault. */
	mapping->memory = mmap(NULL, mapping->bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, 0);
	if (mapping->memory == MAP_FAILED) {
		int error = errno;
		free(mapping);
		return throw_errno(env, error, "cannot map the file");
	}
	if (napi_create_external_arraybuffer(env, mapping->memory, mapping->bytes, unmap, mapping, &buffer) != napi_ok) {
		unmap(env, NULL, mapping);
		return throw_errno(env, ENOMEM, "cannot map the file");
	}
	return buffer;
}
