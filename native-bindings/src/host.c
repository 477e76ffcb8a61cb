/* What is asked of the host beside its devices: a port that is to be nobody else's, and netlink. */
#include "weft.h"
#include <arpa/inet.h>
#include <linux/netlink.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* Of one netlink message that the kernel sends: NLMSG_GOODSIZE and more. */
#define RECEIVE 65536
/* Of all answers to one question. */
#define MOST_ANSWER (256u << 20)

static int set_reuse(int fd, int on)
{
	return setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
}

/* portShare(fd, on): void – whether a portBind that shares may take what this socket holds. */
napi_value port_share(napi_env env, napi_callback_info info)
{
	napi_value args[2];
	int fd;
	bool on;
	if (!arguments(env, info, 2, args, "portShare") || !get_int(env, args[0], &fd)) return NULL;
	if (napi_get_value_bool(env, args[1], &on) != napi_ok) return throw_usage(env, "portShare: on is a boolean");
	if (set_reuse(fd, on) < 0) return throw_errno(env, errno, "cannot share a port");
	return NULL;
}

/*
 * portBind({protocol, address, port, share}): number – a socket that holds the port and neither listens nor is read;
 * with share also where another holds it that portShare said this of.
 */
napi_value port_bind(napi_env env, napi_callback_info info)
{
	napi_value args[1];
	char address[64];
	union {
		struct sockaddr any;
		struct sockaddr_in v4;
		struct sockaddr_in6 v6;
	} local = {0};
	socklen_t size = sizeof local.v4;
	if (!arguments(env, info, 1, args, "portBind")) return NULL;
	if (!get_string_property(env, args[0], "address", address, sizeof address)) return NULL;
	int port = get_int_property(env, args[0], "port", 0);
	if (port < 1 || port > 65535) return throw_usage(env, "portBind: port is not in 1-65535");
	if (inet_pton(AF_INET, address, &local.v4.sin_addr) == 1) {
		local.v4.sin_family = AF_INET;
		local.v4.sin_port = htons((uint16_t)port);
	} else if (inet_pton(AF_INET6, address, &local.v6.sin6_addr) == 1) {
		local.v6.sin6_family = AF_INET6;
		local.v6.sin6_port = htons((uint16_t)port);
		size = sizeof local.v6;
	} else {
		return throw_usage(env, "portBind: address is not an IP address");
	}
	int protocol = get_int_property(env, args[0], "protocol", IPPROTO_TCP);
	int type = protocol == IPPROTO_UDP ? SOCK_DGRAM : SOCK_STREAM;
	bool share = get_bool_property(env, args[0], "share", false) || type == SOCK_STREAM;
	int fd = socket(local.any.sa_family, type | SOCK_NONBLOCK | SOCK_CLOEXEC, protocol);
	if (fd < 0) return throw_errno(env, errno, "cannot open a socket of IP protocol %d", protocol);
	const int on = 1;
	const char *what = NULL;
	/* Beside a holder of the port for IPv4, not instead of it. */
	if (local.any.sa_family == AF_INET6 && setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof on) < 0)
		what = "restrict the socket to IPv6";
	/* Connections that closed a while ago do not hold a port; listeners do. */
	if (!what && share && set_reuse(fd, 1) < 0) what = "ask for the address";
	if (!what && bind(fd, &local.any, size) < 0) what = "bind";
	/* Who shares addresses may still bind beside us, but not listen. */
	if (!what && set_reuse(fd, 0) < 0) what = "keep the address";
	if (what) {
		int error = errno;
		close(fd);
		return throw_errno(env, error, "%s port %d: cannot %s", address, port, what);
	}
	return make_int(env, fd);
}

struct answer {
	uint8_t *bytes;
	size_t size, room;
};

static bool keep(struct answer *answer, const void *bytes, size_t size)
{
	if (answer->size + size > answer->room) {
		size_t room = answer->room * 2 + size;
		uint8_t *grown = room > MOST_ANSWER ? NULL : realloc(answer->bytes, room);
		if (!grown) return false;
		answer->bytes = grown;
		answer->room = room;
	}
	memcpy(answer->bytes + answer->size, bytes, size);
	answer->size += size;
	return true;
}

/* Takes the messages of one datagram; 1 when they were the last ones, a negative errno when the kernel refused. */
static int take(struct answer *answer, const uint8_t *buffer, size_t left)
{
	const struct nlmsghdr *header = (const void *)buffer;
	while (left >= sizeof *header && header->nlmsg_len >= sizeof *header && header->nlmsg_len <= left) {
		size_t step = NLMSG_ALIGN(header->nlmsg_len);
		if (header->nlmsg_type == NLMSG_DONE) return 1;
		if (header->nlmsg_type == NLMSG_ERROR) {
			const struct nlmsgerr *error = NLMSG_DATA(header);
			if (header->nlmsg_len < NLMSG_LENGTH(sizeof *error)) return -EBADMSG;
			return error->error == 0 ? 1 : error->error;
		}
		if (!keep(answer, header, step <= left ? step : header->nlmsg_len)) return -ENOMEM;
		if (step >= left) break;
		left -= step;
		header = (const void *)((const uint8_t *)header + step);
	}
	return 0;
}

/*
 * netlinkAsk(family, request: Uint8Array): Uint8Array – sends one message, which must ask for a dump or an
 * acknowledgement, and returns the messages that answer it, up to the end of the dump or the acknowledgement.
 */
napi_value netlink_ask(napi_env env, napi_callback_info info)
{
	static _Thread_local _Alignas(struct nlmsghdr) uint8_t buffer[RECEIVE];
	napi_value args[2], out, memory;
	int family;
	uint8_t *request;
	size_t size;
	if (!arguments(env, info, 2, args, "netlinkAsk")) return NULL;
	if (!get_int(env, args[0], &family) || !get_bytes(env, args[1], &request, &size)) return NULL;
	int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, family);
	if (fd < 0) return throw_errno(env, errno, "cannot open a netlink socket");
	/* A kernel that does not answer must not stop us for ever. */
	const struct timeval limit = {.tv_sec = 5};
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
	struct answer answer = {0};
	int result = send(fd, request, size, 0) < 0 ? -errno : 0;
	while (result == 0) {
		ssize_t count = recv(fd, buffer, sizeof buffer, 0);
		if (count < 0 && errno == EINTR) continue;
		result = count < 0 ? -errno : take(&answer, buffer, (size_t)count);
	}
	close(fd);
	if (result < 0) {
		free(answer.bytes);
		return throw_errno(env, -result, "netlink");
	}
	void *data = NULL;
	if (napi_create_arraybuffer(env, answer.size, &data, &memory) != napi_ok) {
		free(answer.bytes);
		return NULL;
	}
	if (answer.size > 0) memcpy(data, answer.bytes, answer.size);
	free(answer.bytes);
	napi_create_typedarray(env, napi_uint8_array, answer.size, memory, 0, &out);
	return out;
}
