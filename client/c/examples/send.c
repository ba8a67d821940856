/* Tells postanalytics of one request, and asks whether its sender is to be refused.
 *
 *   cc -std=c11 -o send send.c $(pkg-config --cflags --libs postanalytics) && ./send 127.0.0.1:3313
 */
#include <postanalytics.h>
#include <stdio.h>
#include <string.h>

static pa_bytes text(const char *text) {
    return (pa_bytes){.data = text, .length = strlen(text)};
}

static int failed(const char *what) {
    fprintf(stderr, "%s: %s\n", what, pa_last_error());
    return 1;
}

int main(int argc, char **argv) {
    const char *servers[] = {argc > 1 ? argv[1] : "127.0.0.1:3313"};
    pa_config config = PA_CONFIG_INIT;
    config.servers = servers;
    config.servers_length = 1;
    config.node_name = "example";
    pa_client *client;
    if (pa_client_new(&config, &client) < 0)
        return failed("pa_client_new");

    pa_hit hit = PA_HIT_INIT;
    hit.attack_type = PA_ATTACK_PTRAV;
    hit.severity = 200;
    hit.point = text("uri");
    hit.payload = text("/etc/passwd");

    pa_request request = PA_REQUEST_INIT;
    if (pa_ip_parse("192.0.2.7", request.client_ip) < 0)
        return failed("pa_ip_parse");
    request.status = 404;
    request.method = (uint8_t)pa_method(text("GET"));
    request.scheme = PA_SCHEME_HTTP;
    request.host = text("shop.example");
    request.path = text("/etc/passwd");
    request.hits = &hit;
    request.hits_length = 1;
    if (pa_client_send(client, &request) < 0)
        failed("pa_client_send"); /* the site goes on */
    if (pa_client_flush(client, 2000) < 0)
        failed("pa_client_flush");

    printf("%s\n", pa_denylist_contains(client, request.client_ip) ? "refuse" : "serve");
    pa_stats stats = PA_STATS_INIT;
    pa_client_close(client, 1000, &stats);
    printf("acked %llu, tnt_errors %llu\n", (unsigned long long)stats.acked, (unsigned long long)stats.tnt_errors);
    return stats.tnt_errors != 0;
}
