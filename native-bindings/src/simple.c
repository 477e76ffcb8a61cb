/* Plain calls on one descriptor, for the edges: tools that look at a host, and scripts that want simple frames. */
#include "weft.h"
#include <linux/if_tun.h>
#include <netinet/in.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

/*
 * tapPlain(fd): void
 * Takes back every offload, so that each read is one frame of at most the MTU with its checksums done, and sets
 * the vnet header to its shortest, 10 bytes.
 */
napi_value tap_plain(napi_env env, napi_callback_info info)
{
	napi_value args[1];
	int fd;
	int size = 10;
	if (!arguments(env, info, 1, args, "tapPlain") || !get_int(env, args[0], &fd)) return NULL;
	if (ioctl(fd, TUNSETOFFLOAD, 0) < 0) return throw_errno(env, errno, "cannot take back the offloads of a TAP");
	if (ioctl(fd, TUNSETVNETHDRSZ, &size) < 0) return throw_errno(env, errno, "cannot set the vnet header size");
	return NULL;
}

static void set_bool(napi_env env, napi_value object, const char *name, bool value)
{
	napi_value out;
	napi_get_boolean(env, value, &out);
	set_property(env, object, name, out);
}

/* udpOffloads(): {segment, gro} – what a UDP socket of this kernel accepts. */
napi_value udp_offloads(napi_env env, napi_callback_info info)
{
	(void)info;
	const int size = 1400, on = 1;
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, IPPROTO_UDP);
	if (fd < 0) return throw_errno(env, errno, "cannot open a UDP socket");
	napi_value result;
	napi_create_object(env, &result);
	set_bool(env, result, "segment", setsockopt(fd, SOL_UDP, UDP_SEGMENT, &size, sizeof size) == 0);
	set_bool(env, result, "gro", setsockopt(fd, SOL_UDP, UDP_GRO, &on, sizeof on) == 0);
	close(fd);
	return result;
}
