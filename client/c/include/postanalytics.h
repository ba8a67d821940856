/*
 * postanalytics: hands what a filtering node has processed to a postanalytics server.
 * Made by cbindgen from client/c/src; a test compares the two.
 *
 * Returned int: 0 or more is success, negative an error (PA_E...). pa_strerror says what a code means, pa_last_error
 * what happened in this thread, with the remedy.
 *
 * Structures that may grow begin with their size: set struct_size to sizeof, and everything else to zero, by the
 * PA_..._INIT macros. A program built with an older header works with a newer library: what it does not know takes its
 * default. With an older library it works too, unless it sets what that does not know, which is refused.
 *
 * Threads: a client is used by any number of threads at a time, but for the call that frees it, which comes last.
 * Fork: make the client after fork, in each worker. In a child, its parent's client gives PA_EFORK; freeing it there is
 * allowed. Signals: the library raises none, and its one thread takes none.
 * Pointers are read during the call only: all is copied. NULL is PA_EINVAL where it is not said to be allowed. A pointer
 * that is neither NULL nor valid is undefined behaviour, as in any C library. No call throws or unwinds.
 */


#ifndef POSTANALYTICS_H
#define POSTANALYTICS_H

/* Do not edit. To make it again: UPDATE=1 cargo test -p postanalytics-client-c --test header */

#include <stddef.h>
#include <stdint.h>

// All went well.
#define PA_OK 0

// An argument cannot be used: pa_last_error says which.
#define PA_EINVAL -1

// The queue is full. The record was refused and counted.
#define PA_EFULL -2

// No server would store a record so large. It was refused and counted.
#define PA_ETOOLARGE -3

// The client is closed, or its thread has ended.
#define PA_ECLOSED -4

// The client was made by another process, of which this one is a fork: make one after fork.
#define PA_EFORK -5

// Time was over.
#define PA_ETIMEOUT -6

// The system refused a resource.
#define PA_ESYSTEM -7

// A defect of the library, stopped at its border; the call had no effect, or part of it.
#define PA_EPANIC -8

// What pa_denylist_lookup finds: nothing.
#define PA_LIST_NONE 0

// What pa_denylist_lookup finds: to be refused.
#define PA_LIST_DENYLIST 1

// What pa_denylist_lookup finds: to be challenged or slowed down, as the site likes.
#define PA_LIST_GRAYLIST 2

// pa_features: pa_config.servers may name several.
#define PA_FEATURE_SEVERAL_SERVERS 1

// pa_features: pa_denylist_lookup_session.
#define PA_FEATURE_SESSION_VERDICTS 2

// Scheme http.
#define PA_SCHEME_HTTP 1

// Scheme https.
#define PA_SCHEME_HTTPS 2

// Scheme ws.
#define PA_SCHEME_WS 3

// Scheme wss.
#define PA_SCHEME_WSS 4

// The filter blocked the request.
#define PA_FLAG_BLOCKED 1

// The source was on the denylist.
#define PA_FLAG_DENYLIST 2

// The source was on the graylist.
#define PA_FLAG_GRAYLIST 4

// An authentication attempt failed.
#define PA_FLAG_AUTH_FAILED 8

// An authentication attempt succeeded.
#define PA_FLAG_AUTH_SUCCEEDED 16

// Processing took longer than the node's limit.
#define PA_FLAG_OVERLIMIT 32

// The request carried credentials.
#define PA_FLAG_CREDENTIALS 64

// Extension: the text of a method that has no number.
#define PA_TAG_METHOD 1

// Attack type: undefined.
#define PA_ATTACK_UNDEFINED 0

// Attack type: SQL injection.
#define PA_ATTACK_SQLI 1

// Attack type: cross-site scripting.
#define PA_ATTACK_XSS 2

// Attack type: remote code execution.
#define PA_ATTACK_RCE 3

// Attack type: path traversal.
#define PA_ATTACK_PTRAV 4

// Attack type: CRLF injection.
#define PA_ATTACK_CRLF 5

// Attack type: NoSQL injection.
#define PA_ATTACK_NOSQLI 6

// Attack type: server-side request forgery.
#define PA_ATTACK_SSRF 7

// Attack type: server-side includes.
#define PA_ATTACK_SSI 8

// Attack type: LDAP injection.
#define PA_ATTACK_LDAPI 9

// Attack type: XML external entity.
#define PA_ATTACK_XXE 10

// Attack type: mail injection.
#define PA_ATTACK_MAIL_INJECTION 11

// Attack type: vulnerability scanner.
#define PA_ATTACK_SCANNER 12

// Attack type: open redirect.
#define PA_ATTACK_REDIR 13

// Attack type: information leak.
#define PA_ATTACK_INFOLEAK 14

// Attack type: brute force.
#define PA_ATTACK_BRUTE 15

// Attack type: forced browsing.
#define PA_ATTACK_DIRBUST 16

// Attack type: broken object level authorization.
#define PA_ATTACK_BOLA 17

// Attack type: credential stuffing.
#define PA_ATTACK_CREDENTIAL_STUFFING 18

// Attack type: processing over the time limit.
#define PA_ATTACK_OVERLIMIT_RES 19

// Attack type: data bomb.
#define PA_ATTACK_DATA_BOMB 20

// Attack type: virtual patch.
#define PA_ATTACK_VPATCH 21

// Attack type: API abuse.
#define PA_ATTACK_API_ABUSE 22

// Attack type: invalid XML.
#define PA_ATTACK_INVALID_XML 23

// Attack type: mass assignment.
#define PA_ATTACK_MASS_ASSIGNMENT 24

// A client: made by pa_client_new, used by any number of threads, freed by pa_client_free or pa_client_close.
typedef struct pa_client pa_client;

// Bytes of any kind, a text without the zero at its end for instance. data may be NULL if length is 0.
typedef struct pa_bytes {
  // Where they begin.
  const char *data;
  // How many.
  size_t length;
} pa_bytes;

// How a client is made. A field that is zero takes the default that is told with it.
typedef struct pa_config {
  // sizeof(pa_config)
  size_t struct_size;
  // Texts "HOST:PORT", IPv6 addresses in brackets. Default: 127.0.0.1:3313 alone.
  const char *const *servers;
  // How many servers.
  size_t servers_length;
  // 16 bytes, this node's id, the same after every restart. Default: random.
  const uint8_t *node_id;
  // This node's name, for people. Default: the host's name.
  const char *node_name;
  // Memory that records may take until they are settled, a quarter of it for records with hits alone.
  // 65,536 or more. Default: 100,000,000.
  uint64_t queue_bytes;
  // A batch is sent when the next record would make it longer. 1,024 to 1,048,576. Default: 65,536.
  uint64_t batch_bytes;
  // A batch is sent when it has so many records. 1 to 65,536. Default: 4,096.
  uint64_t batch_records_max;
  // Waiting adapts so that a batch has about so many records. 1 to 65,536. Default: 16.
  uint64_t batch_records_aim;
  // Least time that an ordinary record waits for company, microseconds. 10 to 1,000,000. Default: 200, or the longest
  // if that is shorter.
  uint64_t linger_us_min;
  // Longest such time. One with a hit, a login attempt or a 4xx never waits. Default: 200,000, or the least if that is
  // longer.
  uint64_t linger_us_max;
  // How long a connection may take to come about, milliseconds. 1 to 60,000. Default: 1,000.
  uint64_t connect_timeout_ms;
  // How long a record is kept for a server that does not answer, milliseconds: until it is written, and once more until
  // it is acknowledged. 1 to 86,400,000. Default: 900,000.
  uint64_t record_time_limit_ms;
  // Not 0: the records are a replay, whose event times the server is to keep.
  uint32_t replay;
  // 0.
  uint32_t reserved;
} pa_config;

// A finding of the filter.
typedef struct pa_hit {
  // sizeof(pa_hit), the same in all hits of a request.
  size_t struct_size;
  // Where the payload sat, such as get_id or header_user-agent.
  struct pa_bytes point;
  // A sample of the payload.
  struct pa_bytes payload;
  // The rule that matched, 0 if none.
  uint32_t rule_id;
  // PA_ATTACK_...
  uint16_t attack_type;
  // 0 (information) to 255 (worst).
  uint8_t severity;
  // 0.
  uint8_t reserved;
} pa_hit;

// A tagged value. This structure never grows.
typedef struct pa_extension {
  // What the value is: PA_TAG_...
  uint16_t tag;
  // Its bytes.
  struct pa_bytes value;
} pa_extension;

// A processed request. What is not known stays zero, but for application: PA_REQUEST_INIT.
typedef struct pa_request {
  // sizeof(pa_request)
  size_t struct_size;
  // Address of the visitor as IPv6, an IPv4 address as ::ffff:a.b.c.d; see pa_ip_parse and pa_ip_from_bytes.
  uint8_t client_ip[16];
  // Unique id of the request. All zero: the library makes one.
  uint8_t request_id[16];
  // Application id, -1 for the default application. Mind that 0 is the application 0.
  int32_t application;
  // PA_FLAG_..., added up.
  uint32_t flags;
  // When the request came, microseconds since 1970. 0: now.
  uint64_t event_us;
  // Tenant, 0 if there is one only.
  uint64_t tenant;
  // Bytes of the request, headers and body.
  uint64_t request_bytes;
  // Bytes of the response, headers and body.
  uint64_t response_bytes;
  // Time until the response was sent, microseconds.
  uint32_t response_us;
  // Time that detection took, microseconds.
  uint32_t detection_us;
  // Port of the server that took the request.
  uint16_t server_port;
  // Status of the response.
  uint16_t status;
  // Number of the method, see pa_method; 0 with the extension PA_TAG_METHOD for one that has none.
  uint8_t method;
  // PA_SCHEME_...
  uint8_t scheme;
  // HTTP version times ten: 11 is HTTP/1.1.
  uint8_t http_version;
  // 0.
  uint8_t reserved;
  // Host header.
  struct pa_bytes host;
  // Path, as received.
  struct pa_bytes path;
  // Query without the question mark.
  struct pa_bytes query;
  // User-Agent header.
  struct pa_bytes user_agent;
  // Referer header.
  struct pa_bytes referer;
  // Session id in clear text. Only a keyed hash of it leaves the node.
  struct pa_bytes session;
  // User name in clear text. Only a keyed hash of it leaves the node.
  struct pa_bytes user;
  // Raw request headers; leave empty unless the operator wants them stored.
  struct pa_bytes raw_headers;
  // Raw request body, capped by the caller; leave empty unless the operator wants it stored.
  struct pa_bytes raw_body;
  // Findings of the filter, at most 64.
  const struct pa_hit *hits;
  // How many.
  size_t hits_length;
  // Tagged values, at most 64.
  const struct pa_extension *extensions;
  // How many.
  size_t extensions_length;
} pa_request;

// Counters of a client, records unless the name says otherwise. One consistent snapshot: offered = accepted + refused,
// accepted = acked + lost + in_doubt + queued + in_flight, tnt_errors = refused + lost + in_doubt.
typedef struct pa_stats {
  // sizeof(pa_stats), set by the caller.
  size_t struct_size;
  // What postanalytics did not get, or may not have got. 0: it got everything.
  uint64_t tnt_errors;
  // Given to pa_client_send.
  uint64_t offered;
  // Taken into the queue.
  uint64_t accepted;
  // Not taken: the sum of the next three.
  uint64_t refused;
  // The queue had no room.
  uint64_t refused_full;
  // No server would store a record so large.
  uint64_t refused_too_large;
  // Too many hits or extensions, or the client was closing.
  uint64_t refused_other;
  // Stored and analysed by a server.
  uint64_t acked;
  // Given up for sure.
  uint64_t lost;
  // Written, but it will never be known whether a server stored them.
  uint64_t in_doubt;
  // Waiting to be written.
  uint64_t queued;
  // Written and not yet acknowledged.
  uint64_t in_flight;
  // Bytes of memory that queued and in-flight records take.
  uint64_t queue_bytes;
  // Batches written for the first time.
  uint64_t batches_sent;
  // Batches written again after a break.
  uint64_t batches_resent;
  // Connections that came about.
  uint64_t connects;
  // Connections that did not.
  uint64_t connect_errors;
  // Connections that ended.
  uint64_t disconnects;
  // Errors that a server told.
  uint64_t errors_received;
  // Verdicts not kept, for a server listed more than it may.
  uint64_t verdicts_skipped;
  // How often a server was away for so long that its records went to the others.
  uint64_t failovers;
  // Records that were sent to another server after one that may have stored them went away.
  uint64_t maybe_stored_elsewhere;
  // Panics that were caught at the border of this library since the process started. Not 0 is a defect; please report it.
  uint64_t panics_caught;
} pa_stats;

// How a client stands, for people and status pages. Texts are cut where they do not fit, and end in a zero.
typedef struct pa_status {
  // sizeof(pa_status), set by the caller.
  size_t struct_size;
  // Whether at least one lane of any server is open: 1 or 0.
  uint32_t connected;
  // Lanes that are open now, of all servers together.
  uint32_t lanes_open;
  // Servers, each of which pa_client_server_status tells of. 0 until the client's thread has begun.
  uint32_t servers;
  // Entries of the denylist.
  uint32_t listed;
  // What went wrong last, empty if nothing ever did.
  char last_error[512];
} pa_status;

// How a client stands with one server.
typedef struct pa_server_status {
  // sizeof(pa_server_status), set by the caller.
  size_t struct_size;
  // Whether at least one lane is open: 1 or 0.
  uint32_t connected;
  // Whether the records of its sources go to it: 1 or 0. If not, they go to the others.
  uint32_t takes_records;
  // Shards of the server, 0 before the first connection.
  uint32_t shards;
  // Lanes that are open now.
  uint32_t lanes_open;
  // Its id, zero before the first connection.
  uint8_t id[16];
  // Its address, as configured.
  char address[256];
  // Version of its package, empty before the first connection.
  char version[32];
  // What went wrong last with it, empty if nothing ever did.
  char last_error[512];
} pa_server_status;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

// The version of this library, such as "0.1.0".
const char *pa_version(void);

// What this library can do beyond its first version: PA_FEATURE_..., added up.
uint64_t pa_features(void);

// What a code means, in a few words. Never NULL; lives for ever.
const char *pa_strerror(int code);

// What the last call of this thread that failed has to say: cause, live value and remedy. Never NULL; empty if none failed;
// changes with the next call that fails in this thread.
const char *pa_last_error(void);

// Reads an address such as 192.0.2.7 or 2001:db8::7 into the 16 bytes of pa_request.client_ip.
int pa_ip_parse(const char *text_of_ip, uint8_t *ip);

// Takes the 4 or 16 bytes of an address in network order, as in_addr and in6_addr hold them, into pa_request.client_ip.
int pa_ip_from_bytes(const uint8_t *bytes, size_t length, uint8_t *ip);

// The number of a method for pa_request.method, 0 if it has none: send its text as extension PA_TAG_METHOD then.
int pa_method(struct pa_bytes name);

// Makes a client and starts its thread. It does not wait for a connection: records are queued until there is one. config may
// be NULL: defaults. *client is NULL if it fails.
int pa_client_new(const struct pa_config *config,
                  struct pa_client **client);

// Copies the request into the queue and returns. Never waits; what it does not take is counted.
int pa_client_send(const struct pa_client *client, const struct pa_request *request);

// Waits until every record taken so far is acknowledged, lost or in doubt.
int pa_client_flush(const struct pa_client *client, uint64_t timeout_ms);

// Fills in the counters; stats->struct_size is to be set before.
int pa_client_stats(const struct pa_client *client, struct pa_stats *stats);

// Fills in how the client stands; status->struct_size is to be set before.
int pa_client_status(const struct pa_client *client, struct pa_status *status);

// The same for one of its servers, the first being number 0, in the order of pa_config.servers.
int pa_client_server_status(const struct pa_client *client, uint32_t number, struct pa_server_status *status);

// Takes no more records, waits up to timeout_ms until the others are settled, ends the thread, frees the client, and tells
// in stats, if not NULL, what became of all. The client is gone, whatever it returns. In a forked child of the process that made it
// it frees what the child has, tells nothing and returns PA_EFORK. client may be NULL.
int pa_client_close(struct pa_client *client,
                    uint64_t timeout_ms,
                    struct pa_stats *stats);

// pa_client_close with a second, and nobody to tell. client may be NULL.
void pa_client_free(struct pa_client *client);

// 1 if requests of this address to the default application are to be refused, else 0: also if the question cannot be
// answered, for that must not stop a site. Takes no lock. Works in a forked child, whose list no longer changes.
int pa_denylist_contains(const struct pa_client *client, const uint8_t *ip);

// What to do with requests of this address to this application (-1: the default one): PA_LIST_NONE, PA_LIST_DENYLIST or
// PA_LIST_GRAYLIST. Entries for all applications count; the stricter one wins.
int pa_denylist_lookup(const struct pa_client *client, const uint8_t *ip, int32_t application);

// The same for a session id in clear text. PA_LIST_NONE before the first connection, whose server says how ids are hashed.
int pa_denylist_lookup_session(const struct pa_client *client,
                               struct pa_bytes session,
                               int32_t application);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* POSTANALYTICS_H */

/* How to begin each structure: pa_request request = PA_REQUEST_INIT; */
#define PA_CONFIG_INIT { .struct_size = sizeof(pa_config) }
#define PA_REQUEST_INIT { .struct_size = sizeof(pa_request), .application = -1 }
#define PA_HIT_INIT { .struct_size = sizeof(pa_hit) }
#define PA_STATS_INIT { .struct_size = sizeof(pa_stats) }
#define PA_STATUS_INIT { .struct_size = sizeof(pa_status) }
#define PA_SERVER_STATUS_INIT { .struct_size = sizeof(pa_server_status) }
