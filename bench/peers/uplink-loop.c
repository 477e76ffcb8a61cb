/*
 * uplink-loop NETNS DEVICE UPLINK LOCAL REMOTE CARD_MAC NEXT_HOP_MAC
 *
 * The bound between two hosts: one thread between a container's TAP and an uplink TAP in the own namespace, that
 * wraps super-frames into VXLAN whole. One VNI, one peer, no tables, no counters. LOCAL and REMOTE are VTEPs, both
 * IPv4 or both IPv6. Somebody else moves frames between the uplink TAP and the card.
 */
#include "tap.h"
#include <arpa/inet.h>

#define PORT 4789
#define VNI 42
#define ETHERNET 14
#define UDP_VXLAN 16
#define MAX_OUTER (ETHERNET + 40 + UDP_VXLAN)
/* GSO type bits of a UDP tunnel by the family of its outer header (virtio 1.3, 5.1.6). */
#define GSO_TUNNEL_IPV4 0x20
#define GSO_TUNNEL_IPV6 0x40
#define NEEDS_CSUM 1

/* struct virtio_net_hdr_v1_hash_tunnel. */
struct vnet_tunnel {
	struct vnet base;
	uint32_t hash;
	uint16_t report, padding, outer_transport, inner_network;
};

static uint8_t template[MAX_OUTER]; /* outer headers without lengths and checksums */
static size_t ip_size;
static size_t outer_size;
static uint8_t tunnel_type;
/* The inner frame always lies at the same place, with room in front for either header. */
static uint8_t memory[128 + 65536] __attribute__((aligned(64)));
static uint8_t *const inner = memory + 128;
_Static_assert(sizeof(struct vnet_tunnel) == 24 && sizeof(struct vnet_tunnel) + MAX_OUTER <= 128, "headroom");

static void put16(uint8_t *at, size_t value)
{
	at[0] = (uint8_t)(value >> 8);
	at[1] = (uint8_t)value;
}

static uint16_t ipv4_checksum(const uint8_t *header)
{
	uint32_t sum = 0;
	for (int i = 0; i < 20; i += 2) sum += (uint32_t)(header[i] << 8 | header[i + 1]);
	while (sum >> 16) sum = (sum & 0xffff) + (sum >> 16);
	return (uint16_t)~sum;
}

static void parse_mac(const char *text, uint8_t *mac)
{
	int got = sscanf(text, "%hhx:%hhx:%hhx:%hhx:%hhx:%hhx", mac, mac + 1, mac + 2, mac + 3, mac + 4, mac + 5);
	if (got == 6) return;
	fprintf(stderr, "not a MAC: %s\n", text);
	exit(2);
}

static void build_template(const char *local, const char *remote, const char *card, const char *next_hop)
{
	uint8_t *ip = template + ETHERNET;
	int v6 = strchr(local, ':') != NULL;
	size_t addresses = v6 ? 8 : 12, length = v6 ? 16 : 4;
	ip_size = v6 ? 40 : 20;
	outer_size = ETHERNET + ip_size + UDP_VXLAN;
	tunnel_type = v6 ? GSO_TUNNEL_IPV6 : GSO_TUNNEL_IPV4;
	parse_mac(next_hop, template);
	parse_mac(card, template + 6);
	put16(template + 12, v6 ? 0x86dd : 0x0800);
	ip[0] = v6 ? 0x60 : 0x45;
	ip[v6 ? 6 : 9] = IPPROTO_UDP;
	ip[v6 ? 7 : 8] = 64;
	if (inet_pton(v6 ? AF_INET6 : AF_INET, local, ip + addresses) != 1 ||
	    inet_pton(v6 ? AF_INET6 : AF_INET, remote, ip + addresses + length) != 1) {
		fprintf(stderr, "not two VTEPs of one family: %s, %s\n", local, remote);
		exit(2);
	}
	uint8_t *udp = ip + ip_size;
	put16(udp, 49153);
	put16(udp + 2, PORT);
	udp[8] = 8; /* VXLAN: the VNI is valid */
	udp[14] = VNI;
}

/* Reads a frame of the container and writes it out in VXLAN. Returns 0 when there was none. */
static int send_one(int container, int uplink)
{
	struct vnet *in = (struct vnet *)(inner - sizeof *in);
	ssize_t got = read(container, in, sizeof *in + 65536 - MAX_OUTER);
	if (got <= (ssize_t)sizeof *in) return got > 0;
	size_t size = (size_t)got - sizeof *in;
	struct vnet_tunnel out = {.base = *in};
	uint8_t *outer = inner - outer_size;
	memcpy(outer, template, outer_size);
	uint8_t *ip = outer + ETHERNET;
	if (ip_size == 20) {
		put16(ip + 2, ip_size + UDP_VXLAN + size);
		put16(ip + 10, ipv4_checksum(ip));
	} else {
		put16(ip + 4, UDP_VXLAN + size);
	}
	put16(ip + ip_size + 4, UDP_VXLAN + size);
	if (out.base.gso_type) {
		out.base.gso_type |= tunnel_type;
		out.base.hdr_len += (uint16_t)outer_size;
		out.outer_transport = (uint16_t)(ETHERNET + ip_size);
		out.inner_network = (uint16_t)(outer_size + ETHERNET);
	}
	if (out.base.flags & NEEDS_CSUM) out.base.csum_start += (uint16_t)outer_size;
	memcpy(outer - sizeof out, &out, sizeof out);
	(void)!write(uplink, outer - sizeof out, sizeof out + outer_size + size); /* a refused frame is lost */
	return 1;
}

/* Reads a packet of the underlay and hands its inner frame to the container. Returns 0 when there was none. */
static int receive_one(int uplink, int container)
{
	uint8_t *outer = inner - outer_size;
	struct vnet_tunnel in;
	ssize_t got = read(uplink, outer - sizeof in, sizeof in + outer_size + 65536 - MAX_OUTER);
	if (got <= 0) return 0;
	const uint8_t *udp = outer + ETHERNET + ip_size;
	if ((size_t)got < sizeof in + outer_size + ETHERNET || memcmp(outer + 12, template + 12, 2) != 0 ||
	    memcmp(udp + 2, template + ETHERNET + ip_size + 2, 2) != 0)
		return 1;
	memcpy(&in, outer - sizeof in, sizeof in);
	struct vnet out = {0};
	if (in.base.flags & NEEDS_CSUM && in.base.csum_start > outer_size) {
		out = in.base;
		out.flags = NEEDS_CSUM;
		out.gso_type &= (uint8_t)~(GSO_TUNNEL_IPV4 | GSO_TUNNEL_IPV6);
		out.csum_start -= (uint16_t)outer_size;
		out.hdr_len = out.gso_type ? (uint16_t)(in.base.hdr_len - outer_size) : 0;
		out.num_buffers = 0;
	}
	memcpy(inner - sizeof out, &out, sizeof out);
	(void)!write(container, inner - sizeof out, (size_t)got - sizeof in - outer_size + sizeof out);
	return 1;
}

int main(int argc, char **argv)
{
	if (argc != 8) {
		fprintf(stderr, "usage: uplink-loop NETNS DEVICE UPLINK LOCAL REMOTE CARD_MAC NEXT_HOP_MAC\n");
		return 2;
	}
	build_template(argv[4], argv[5], argv[6], argv[7]);
	int container = open_tap(argv[1], argv[2], sizeof(struct vnet), OFFLOADS);
	int uplink = open_tap(NULL, argv[3], sizeof(struct vnet_tunnel), TUNNEL_OFFLOADS);
	struct pollfd ports[] = {{.fd = container, .events = POLLIN}, {.fd = uplink, .events = POLLIN}};
	puts("ready");
	fflush(stdout);
	for (;;) {
		poll(ports, 2, -1);
		for (int i = 0; ports[0].revents && i < BURST && send_one(container, uplink); i++) continue;
		for (int i = 0; ports[1].revents && i < BURST && receive_one(uplink, container); i++) continue;
	}
}
