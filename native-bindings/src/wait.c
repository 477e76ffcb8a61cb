/* One wait over all ports (epoll), and an event by which the main thread wakes a worker that sleeps in it. */
#include "weft.h"
#include <sched.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

/* waitCreate(): number */
napi_value wait_create(napi_env env, napi_callback_info info)
{
	(void)info;
	int fd = epoll_create1(EPOLL_CLOEXEC);
	if (fd < 0) return throw_errno(env, errno, "cannot create an epoll instance");
	return make_int(env, fd);
}

/* waitAdd(wait, fd, tag): void – `tag` comes back from wait() while fd is readable. */
napi_value wait_add(napi_env env, napi_callback_info info)
{
	napi_value args[3];
	int wait, fd;
	uint32_t tag;
	if (!arguments(env, info, 3, args, "waitAdd")) return NULL;
	if (!get_int(env, args[0], &wait) || !get_int(env, args[1], &fd) || !get_u32(env, args[2], &tag)) return NULL;
	struct epoll_event event = {.events = EPOLLIN, .data.u32 = tag};
	if (epoll_ctl(wait, EPOLL_CTL_ADD, fd, &event) < 0) return throw_errno(env, errno, "cannot wait on descriptor %d", fd);
	return NULL;
}

/* waitRemove(wait, fd): void */
napi_value wait_remove(napi_env env, napi_callback_info info)
{
	napi_value args[2];
	int wait, fd;
	if (!arguments(env, info, 2, args, "waitRemove")) return NULL;
	if (!get_int(env, args[0], &wait) || !get_int(env, args[1], &fd)) return NULL;
	if (epoll_ctl(wait, EPOLL_CTL_DEL, fd, NULL) < 0)
		return throw_errno(env, errno, "cannot stop waiting on descriptor %d", fd);
	return NULL;
}

static int64_t now_ns(void)
{
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

static int sleep_for(int wait, struct epoll_event *events, int room, int microseconds)
{
	struct timespec limit = {.tv_sec = microseconds / 1000000, .tv_nsec = microseconds % 1000000 * 1000};
	int count = epoll_pwait2(wait, events, room, microseconds < 0 ? NULL : &limit, NULL);
	if (count < 0 && errno == ENOSYS) /* before Linux 5.11: milliseconds, rounded up */
		count = epoll_wait(wait, events, room, microseconds < 0 ? -1 : (microseconds + 999) / 1000);
	return count;
}

/*
 * wait(wait, ready: Uint32Array, microseconds, spin): number
 * Looks for `spin` microseconds without sleeping, giving the processor to whoever wants it between two looks; then
 * sleeps for `microseconds`, for ever when negative. Fills `ready` with tags and returns how many; 0 on timeout or a
 * signal.
 */
napi_value wait_ready(napi_env env, napi_callback_info info)
{
	napi_value args[4];
	int wait, microseconds, spin;
	uint32_t *ready;
	size_t room;
	if (!arguments(env, info, 4, args, "wait")) return NULL;
	if (!get_int(env, args[0], &wait) || !get_words(env, args[1], &ready, &room) || !get_int(env, args[2], &microseconds) ||
	    !get_int(env, args[3], &spin))
		return NULL;
	struct epoll_event events[MAX_BATCH];
	if (room > MAX_BATCH) room = MAX_BATCH;
	if (room == 0) return throw_usage(env, "wait: no room for tags");
	int count = 0;
	if (spin > 0) {
		const int64_t end = now_ns() + spin * INT64_C(1000);
		do {
			count = epoll_wait(wait, events, (int)room, 0);
			if (count != 0) break;
			sched_yield();
		} while (now_ns() < end);
	}
	if (count == 0) count = sleep_for(wait, events, (int)room, microseconds);
	if (count < 0) {
		if (errno == EINTR) return make_int(env, 0);
		return throw_errno(env, errno, "cannot wait");
	}
	for (int i = 0; i < count; i++) ready[i] = events[i].data.u32;
	return make_int(env, count);
}

/* eventCreate(): number */
napi_value event_create(napi_env env, napi_callback_info info)
{
	(void)info;
	int fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	if (fd < 0) return throw_errno(env, errno, "cannot create an event");
	return make_int(env, fd);
}

/* eventSignal(fd): void */
napi_value event_signal(napi_env env, napi_callback_info info)
{
	napi_value args[1];
	int fd;
	const uint64_t one = 1;
	if (!arguments(env, info, 1, args, "eventSignal") || !get_int(env, args[0], &fd)) return NULL;
	if (write(fd, &one, sizeof one) < 0 && errno != EAGAIN) return throw_errno(env, errno, "cannot signal event %d", fd);
	return NULL;
}

/* eventClear(fd): void */
napi_value event_clear(napi_env env, napi_callback_info info)
{
	napi_value args[1];
	int fd;
	uint64_t value;
	if (!arguments(env, info, 1, args, "eventClear") || !get_int(env, args[0], &fd)) return NULL;
	if (read(fd, &value, sizeof value) < 0 && errno != EAGAIN) return throw_errno(env, errno, "cannot clear event %d", fd);
	return NULL;
}
