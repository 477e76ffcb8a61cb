/** ICMP (RFC 792) on 16-bit views: types, and where the identifier of a query and the packet of an error are. */

/** Type, code, checksum, and four bytes that depend on the type. */
export const ICMP_HEADER = 8;
/** Word indices within the header. */
export const ICMP_CHECKSUM = 1;
export const ICMP_IDENTIFIER = 2;

export const ECHO_REPLY = 0;
export const UNREACHABLE = 3;
const SOURCE_QUENCH = 4;
export const REDIRECT = 5;
export const ECHO = 8;
export const TIME_EXCEEDED = 11;
const PARAMETER_PROBLEM = 12;
const TIMESTAMP = 13;
const TIMESTAMP_REPLY = 14;

/** Codes of UNREACHABLE. */
export const NET_UNREACHABLE = 0;
export const HOST_UNREACHABLE = 1;
export const PORT_UNREACHABLE = 3;
export const FRAGMENTATION_NEEDED = 4;
export const ADMINISTRATIVELY_PROHIBITED = 13;

/** Whether a message asks something, under an identifier. */
export function isQuery(type: number): boolean {
  return type === ECHO || type === TIMESTAMP;
}

export function isReply(type: number): boolean {
  return type === ECHO_REPLY || type === TIMESTAMP_REPLY;
}

/** Whether a message carries the beginning of a packet that it is about. Redirects are between neighbours. */
export function isError(type: number): boolean {
  return (
    type === UNREACHABLE || type === TIME_EXCEEDED || type === PARAMETER_PROBLEM || type === SOURCE_QUENCH
  );
}
