/* Calls everything of the header against a real server; tests/tests/c_abi.rs builds and runs it. Usage: abi HOST:PORT
 *
 * The server lists 192.0.2.66 and 2001:db8:66::/64 (denylist) and 192.0.2.67 (graylist).
 */
#define _POSIX_C_SOURCE 200809L
#include <postanalytics.h>
#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define CHECK(condition)                                                                                              \
    do {                                                                                                              \
        if (!(condition)) {                                                                                           \
            fprintf(stderr, "%s:%d: not so: %s (last error: %s)\n", __FILE__, __LINE__, #condition, pa_last_error()); \
            exit(1);                                                                                                  \
        }                                                                                                             \
    } while (0)
#define SAYS(word) CHECK(strstr(pa_last_error(), word) != NULL)

/* As an older header and a newer one would have them. */
typedef struct newer_config {
    pa_config known;
    uint64_t later;
} newer_config;
typedef struct newer_stats {
    pa_stats known;
    uint64_t later;
} newer_stats;

static pa_bytes text(const char *text) {
    return (pa_bytes){.data = text, .length = strlen(text)};
}

static void address(const char *written, uint8_t ip[16]) {
    CHECK(pa_ip_parse(written, ip) == PA_OK);
}

static pa_request request_of(const char *ip, const char *path) {
    pa_request request = PA_REQUEST_INIT;
    address(ip, request.client_ip);
    request.status = 200;
    request.method = (uint8_t)pa_method(text("GET"));
    request.path = text(path);
    return request;
}

static pa_client *client_of(const char *server) {
    const char *servers[] = {server};
    pa_config config = PA_CONFIG_INIT;
    config.servers = servers;
    config.servers_length = 1;
    config.node_name = "c-test";
    pa_client *client = NULL;
    CHECK(pa_client_new(&config, &client) == PA_OK && client != NULL);
    return client;
}

static void small_calls(void) {
    CHECK(strcmp(pa_version(), PA_TEST_VERSION) == 0);
    CHECK(pa_features() & PA_FEATURE_SESSION_VERDICTS && pa_features() & PA_FEATURE_SEVERAL_SERVERS);
    for (int code = 1; code >= -20; code--)
        CHECK(strlen(pa_strerror(code)) > 0);
    CHECK(strcmp(pa_strerror(PA_EFORK), pa_strerror(PA_EFULL)) != 0);
    CHECK(pa_method(text("GET")) == 1 && pa_method(text("BREW")) == 0 && pa_method((pa_bytes){NULL, 0}) == 0);
    CHECK(pa_method((pa_bytes){NULL, 3}) == PA_EINVAL);

    static const uint8_t mapped[16] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 0, 2, 7};
    static const uint8_t four[4] = {192, 0, 2, 7};
    uint8_t ip[16];
    address("192.0.2.7", ip);
    CHECK(memcmp(ip, mapped, 16) == 0);
    memset(ip, 0, 16);
    CHECK(pa_ip_from_bytes(four, 4, ip) == PA_OK && memcmp(ip, mapped, 16) == 0);
    CHECK(pa_ip_from_bytes(mapped, 16, ip) == PA_OK && memcmp(ip, mapped, 16) == 0);
    CHECK(pa_ip_from_bytes(four, 3, ip) == PA_EINVAL);
    CHECK(pa_ip_from_bytes(NULL, 4, ip) == PA_EINVAL && pa_ip_from_bytes(four, 4, NULL) == PA_EINVAL);
    CHECK(pa_ip_parse("192.0.2.7:80", ip) == PA_EINVAL);
    SAYS("192.0.2.7:80");
    CHECK(pa_ip_parse("\xff", ip) == PA_EINVAL && pa_ip_parse(NULL, ip) == PA_EINVAL && pa_ip_parse("::1", NULL) == PA_EINVAL);
}

static void wrong_arguments(pa_client *client) {
    pa_request request = request_of("192.0.2.7", "/");
    pa_stats stats = PA_STATS_INIT;
    pa_status status = PA_STATUS_INIT;
    pa_server_status server = PA_SERVER_STATUS_INIT;
    CHECK(pa_client_new(NULL, NULL) == PA_EINVAL);
    CHECK(pa_client_send(NULL, &request) == PA_EINVAL && pa_client_send(client, NULL) == PA_EINVAL);
    CHECK(pa_client_flush(NULL, 1) == PA_EINVAL);
    CHECK(pa_client_stats(NULL, &stats) == PA_EINVAL && pa_client_stats(client, NULL) == PA_EINVAL);
    CHECK(pa_client_status(NULL, &status) == PA_EINVAL && pa_client_status(client, NULL) == PA_EINVAL);
    CHECK(pa_client_server_status(client, 0, NULL) == PA_EINVAL && pa_client_server_status(client, 7, &server) == PA_EINVAL);
    SAYS("no server 7");
    CHECK(pa_denylist_contains(NULL, request.client_ip) == 0 && pa_denylist_contains(client, NULL) == 0);
    CHECK(pa_denylist_lookup(NULL, request.client_ip, -1) == PA_EINVAL && pa_denylist_lookup(client, NULL, -1) == PA_EINVAL);
    CHECK(pa_denylist_lookup_session(client, (pa_bytes){NULL, 5}, -1) == PA_EINVAL);
    CHECK(pa_client_close(NULL, 1, NULL) == PA_OK);
    pa_client_free(NULL);

    pa_client *none = client;
    pa_config config = PA_CONFIG_INIT;
    const char *servers[] = {"no port"};
    config.servers = servers;
    config.servers_length = 1;
    CHECK(pa_client_new(&config, &none) == PA_EINVAL && none == NULL);
    SAYS("no port");
    servers[0] = NULL;
    CHECK(pa_client_new(&config, &none) == PA_EINVAL);
    const char *many[100];
    for (int i = 0; i < 100; i++)
        many[i] = "127.0.0.1:1";
    config.servers = many;
    config.servers_length = 2;
    CHECK(pa_client_new(&config, &none) == PA_EINVAL);
    SAYS("twice");
    config.servers_length = 100;
    CHECK(pa_client_new(&config, &none) == PA_EINVAL);
    SAYS("at most");
    many[1] = "127.0.0.1:2";
    config.servers_length = 2;
    pa_client *two;
    CHECK(pa_client_new(&config, &two) == PA_OK);
    for (int turn = 0; turn < 1000 && status.servers == 0; turn++) {
        nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
        CHECK(pa_client_status(two, &status) == PA_OK);
    }
    CHECK(status.servers == 2);
    CHECK(pa_client_server_status(two, 1, &server) == PA_OK && strcmp(server.address, "127.0.0.1:2") == 0);
    pa_client_close(two, 0, NULL);
    config.servers_length = 1;
    config.servers = NULL;
    CHECK(pa_client_new(&config, &none) == PA_EINVAL);
    config.servers_length = 0;
    config.queue_bytes = 10;
    CHECK(pa_client_new(&config, &none) == PA_EINVAL);
    SAYS("queue_bytes is 10");
    config.queue_bytes = 0;
    config.linger_us_min = 10000;
    config.linger_us_max = 1000;
    CHECK(pa_client_new(&config, &none) == PA_EINVAL);
    SAYS("linger min is 10ms");
    config.linger_us_min = config.linger_us_max = 0;
    config.reserved = 1;
    CHECK(pa_client_new(&config, &none) == PA_EINVAL);
}

static void sizes(const char *address_of_server, pa_client *client) {
    /* Never set, or nonsense. */
    for (size_t size = 0; size < 5000; size += size < 400 ? 1 : 997) {
        pa_request request = request_of("192.0.2.7", "/");
        request.struct_size = size;
        if (size < 48 || size % 8 != 0 || size > 4096)
            CHECK(pa_client_send(client, &request) == PA_EINVAL);
    }
    SAYS("sizeof(pa_request)");

    /* An older header: it ends after record_time_limit_ms, or after the servers. */
    const char *servers[] = {address_of_server};
    pa_config older = PA_CONFIG_INIT;
    older.servers = servers;
    older.servers_length = 1;
    older.replay = 7; /* beyond its end: not looked at */
    older.reserved = 7;
    size_t ends[] = {offsetof(pa_config, replay), offsetof(pa_config, node_id)};
    for (size_t i = 0; i < 2; i++) {
        older.struct_size = ends[i];
        pa_client *made;
        CHECK(pa_client_new(&older, &made) == PA_OK);
        pa_client_free(made);
    }

    /* A newer one: fine as long as what we do not know is zero. */
    newer_config newer = {.known = PA_CONFIG_INIT};
    newer.known.struct_size = sizeof newer;
    newer.known.servers = servers;
    newer.known.servers_length = 1;
    pa_client *made;
    CHECK(pa_client_new(&newer.known, &made) == PA_OK);
    pa_client_free(made);
    newer.later = 1;
    CHECK(pa_client_new(&newer.known, &made) == PA_EINVAL && made == NULL);
    SAYS("newer");

    newer_stats stats = {.known = PA_STATS_INIT, .later = 77};
    stats.known.struct_size = sizeof stats;
    CHECK(pa_client_stats(client, &stats.known) == PA_OK && stats.later == 0 && stats.known.struct_size == sizeof stats);
    pa_stats small = PA_STATS_INIT;
    small.struct_size = offsetof(pa_stats, offered);
    small.offered = 77;
    CHECK(pa_client_stats(client, &small) == PA_OK && small.offered == 77 && small.tnt_errors == 0);
}

static void everything_of_a_request(pa_client *client) {
    pa_hit hits[2] = {PA_HIT_INIT, PA_HIT_INIT};
    hits[0].attack_type = PA_ATTACK_SQLI;
    hits[0].severity = 200;
    hits[0].rule_id = 942100;
    hits[0].point = text("get_id");
    hits[0].payload = text("1' or 1=1");
    hits[1] = hits[0];
    hits[1].attack_type = PA_ATTACK_XSS;
    hits[1].point = text("header_referer");
    pa_extension extensions[1] = {{.tag = PA_TAG_METHOD, .value = text("BREW")}};

    pa_request request = request_of("2001:db8::7", "/all");
    memcpy(request.request_id, "0123456789abcdef", 16);
    request.application = 7;
    request.flags = PA_FLAG_BLOCKED | PA_FLAG_CREDENTIALS;
    request.event_us = (uint64_t)time(NULL) * 1000000;
    request.tenant = 3;
    request.request_bytes = 1001;
    request.response_bytes = 1002;
    request.response_us = 1003;
    request.detection_us = 104;
    request.server_port = 8443;
    request.status = 403;
    request.method = 0;
    request.scheme = PA_SCHEME_HTTPS;
    request.http_version = 20;
    request.host = text("shop.example");
    request.query = text("id=1");
    request.user_agent = text("agent/1");
    request.referer = text("https://shop.example/");
    request.session = text("a session");
    request.user = text("a user");
    request.raw_headers = text("Host: shop.example\r\n");
    request.raw_body = text("a=b");
    request.hits = hits;
    request.hits_length = 2;
    request.extensions = extensions;
    request.extensions_length = 1;
    CHECK(pa_client_send(client, &request) == PA_OK);

    /* Hits of a newer header are further apart; two sizes are refused, and so is what cannot be. */
    struct {
        pa_hit hit;
        uint64_t later;
    } newer[2] = {{PA_HIT_INIT, 0}, {PA_HIT_INIT, 0}};
    newer[0].hit.struct_size = newer[1].hit.struct_size = sizeof newer[0];
    newer[1].hit.attack_type = PA_ATTACK_RCE;
    request = request_of("192.0.2.7", "/newer-hits");
    request.hits = &newer[0].hit;
    request.hits_length = 2;
    CHECK(pa_client_send(client, &request) == PA_OK);
    newer[1].later = 1;
    CHECK(pa_client_send(client, &request) == PA_EINVAL);
    hits[1].struct_size = 0;
    request.hits = hits;
    CHECK(pa_client_send(client, &request) == PA_EINVAL);
    request.hits_length = 65;
    CHECK(pa_client_send(client, &request) == PA_EINVAL);
    request.hits = NULL;
    request.hits_length = 1;
    CHECK(pa_client_send(client, &request) == PA_EINVAL);
    request.hits_length = 0;
    request.extensions_length = 1;
    CHECK(pa_client_send(client, &request) == PA_EINVAL);
    request.extensions_length = 0;
    request.path = (pa_bytes){NULL, 4};
    CHECK(pa_client_send(client, &request) == PA_EINVAL);

    /* No server would store it. */
    static char large[2 << 20];
    request.path = (pa_bytes){large, sizeof large};
    CHECK(pa_client_send(client, &request) == PA_ETOOLARGE);
    pa_stats stats = PA_STATS_INIT;
    CHECK(pa_client_stats(client, &stats) == PA_OK && stats.refused_too_large == 1 && stats.tnt_errors == 1);
}

static void lists(pa_client *client) {
    uint8_t denied[16], gray[16], nobody[16], v6[16];
    address("192.0.2.66", denied);
    address("192.0.2.67", gray);
    address("192.0.2.68", nobody);
    address("2001:db8:66::1234", v6);
    int found = 0;
    for (int turn = 0; turn < 1000 && !found; turn++) {
        nanosleep(&(struct timespec){.tv_nsec = 20000000}, NULL);
        found = pa_denylist_contains(client, denied) && pa_denylist_contains(client, v6) &&
                pa_denylist_lookup(client, gray, -1) == PA_LIST_GRAYLIST;
    }
    CHECK(found);
    CHECK(pa_denylist_lookup(client, denied, -1) == PA_LIST_DENYLIST && pa_denylist_lookup(client, denied, 5) == PA_LIST_DENYLIST);
    CHECK(pa_denylist_lookup(client, v6, 0) == PA_LIST_DENYLIST);
    CHECK(pa_denylist_contains(client, gray) == 0 && pa_denylist_contains(client, nobody) == 0);
    CHECK(pa_denylist_lookup(client, nobody, -1) == PA_LIST_NONE);
    CHECK(pa_denylist_lookup_session(client, text("a session"), -1) == PA_LIST_NONE);
}

#define THREADS 4
#define EACH 500

static void *send_many(void *client) {
    for (int i = 0; i < EACH; i++) {
        pa_request request = request_of("198.51.100.9", "/many");
        CHECK(pa_client_send(client, &request) == PA_OK);
    }
    return NULL;
}

static void threads(pa_client *client) {
    pthread_t all[THREADS];
    for (int i = 0; i < THREADS; i++)
        CHECK(pthread_create(&all[i], NULL, send_many, client) == 0);
    for (int i = 0; i < THREADS; i++)
        CHECK(pthread_join(all[i], NULL) == 0);
}

/* The error of another thread is not ours. */
static void *fail_elsewhere(void *nothing) {
    uint8_t ip[16];
    CHECK(strlen(pa_last_error()) == 0 && pa_ip_parse("elsewhere", ip) == PA_EINVAL);
    SAYS("elsewhere");
    return nothing;
}

static void errors_of_threads(void) {
    uint8_t ip[16];
    CHECK(pa_ip_parse("here", ip) == PA_EINVAL);
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, fail_elsewhere, NULL) == 0 && pthread_join(thread, NULL) == 0);
    SAYS("here");
}

static void a_child(pa_client *client) {
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        uint8_t denied[16];
        pa_request request = request_of("192.0.2.7", "/child");
        pa_stats stats = PA_STATS_INIT;
        pa_status status = PA_STATUS_INIT;
        address("192.0.2.66", denied);
        CHECK(pa_client_send(client, &request) == PA_EFORK);
        SAYS("after fork");
        CHECK(pa_client_flush(client, 10000) == PA_EFORK && pa_client_stats(client, &stats) == PA_EFORK);
        CHECK(pa_client_status(client, &status) == PA_EFORK && pa_denylist_contains(client, denied) == 1);
        stats.offered = 7;
        CHECK(pa_client_close(client, 10000, &stats) == PA_EFORK && stats.offered == 7);
        SAYS("after fork");
        /* Nobody is to look for leaks in here: what its parent's threads hold can never be freed. */
        kill(getpid(), SIGKILL);
    }
    int status = -1;
    CHECK(child > 0 && waitpid(child, &status, 0) == child && WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    child = fork();
    if (child == 0) {
        pa_client_free(client);
        kill(getpid(), SIGKILL);
    }
    CHECK(child > 0 && waitpid(child, &status, 0) == child && WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
}

static void a_server_that_is_away(void) {
    pa_client *client = client_of("127.0.0.1:1");
    pa_request request = request_of("192.0.2.7", "/away");
    CHECK(pa_client_send(client, &request) == PA_OK && pa_client_flush(client, 50) == PA_ETIMEOUT);
    SAYS("1 records");
    pa_server_status server = PA_SERVER_STATUS_INIT;
    CHECK(pa_client_server_status(client, 0, &server) == PA_OK && strcmp(server.address, "127.0.0.1:1") == 0 && !server.connected);
    pa_stats stats = PA_STATS_INIT;
    CHECK(pa_client_close(client, 0, &stats) == PA_OK && stats.lost == 1 && stats.tnt_errors == 1);

    const char *servers[] = {"127.0.0.1:1"};
    pa_config config = PA_CONFIG_INIT;
    config.servers = servers;
    config.servers_length = 1;
    config.queue_bytes = 65536;
    CHECK(pa_client_new(&config, &client) == PA_OK);
    int code = PA_OK;
    for (int i = 0; i < 10000 && code == PA_OK; i++)
        code = pa_client_send(client, &request);
    CHECK(code == PA_EFULL);
    SAYS("the queue is full");
    pa_client_close(client, 0, &stats);
    CHECK(stats.refused_full == 1 && stats.offered == stats.accepted + stats.refused);
}

int main(int argc, char **argv) {
    CHECK(argc == 2);
    small_calls();
    errors_of_threads();
    pa_client *client = client_of(argv[1]);
    wrong_arguments(client);
    sizes(argv[1], client);
    everything_of_a_request(client);
    threads(client);
    CHECK(pa_client_flush(client, 60000) == PA_OK);
    lists(client);
    a_child(client);

    pa_status status = PA_STATUS_INIT;
    pa_server_status server = PA_SERVER_STATUS_INIT;
    CHECK(pa_client_status(client, &status) == PA_OK && status.connected == 1 && status.servers == 1 && status.listed >= 3);
    CHECK(pa_client_server_status(client, 0, &server) == PA_OK && server.connected == 1 && server.shards >= 1);
    CHECK(strcmp(server.address, argv[1]) == 0 && strcmp(server.version, pa_version()) == 0);
    pa_stats stats = PA_STATS_INIT;
    CHECK(pa_client_close(client, 10000, &stats) == PA_OK);
    CHECK(stats.accepted == 2 + THREADS * EACH && stats.acked == stats.accepted && stats.panics_caught == 0);
    CHECK(stats.refused == 1 && stats.tnt_errors == 1);
    a_server_that_is_away();
    puts("ok");
    return 0;
}
