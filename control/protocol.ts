/** What commands and the daemon agree on; apart, so that a command that only asks does not load the daemon. */

export const DEFAULT_SOCKET = '/run/weft/weft.sock';
/** Version of the shape of everything that is answered or printed as JSON. */
export const SCHEMA_VERSION = 1;
