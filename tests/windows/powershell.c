/*
 * Stands for powershell.exe under Wine, where there is none: carries everything over a loopback socket to a listener of the
 * test's (tests/src/wine/relay.rs), which starts a real PowerShell. The port stands in the file powershell.port beside this
 * program. Wine's pipes do not reach programs of the Linux side, sockets do.
 *
 * Both ways go frames: one byte of kind, four of length (little-endian), the content.
 *   to the listener:  A arguments, a line each   I input   E end of input
 *   from it:          O output   R errors   X exit code, as decimal text
 * The socket's end before an X means that the other end was killed.
 */
#include <winsock2.h>
#include <windows.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <wchar.h>

static SOCKET listener;

static void die(const char *why) {
    fprintf(stderr, "powershell.exe (stand-in): %s\n", why);
    ExitProcess(254);
}

static int send_all(const char *bytes, int count) {
    while (count > 0) {
        int sent = send(listener, bytes, count, 0);
        if (sent <= 0) return 0;
        bytes += sent;
        count -= sent;
    }
    return 1;
}

static int receive_all(char *bytes, int count) {
    while (count > 0) {
        int got = recv(listener, bytes, count, 0);
        if (got <= 0) return 0;
        bytes += got;
        count -= got;
    }
    return 1;
}

static int frame(char kind, const char *bytes, unsigned count) {
    char head[5] = {kind, (char)count, (char)(count >> 8), (char)(count >> 16), (char)(count >> 24)};
    return send_all(head, sizeof head) && send_all(bytes, (int)count);
}

static DWORD WINAPI carry_input(LPVOID nothing) {
    static char bytes[65536];
    HANDLE input = GetStdHandle(STD_INPUT_HANDLE);
    DWORD got;
    (void)nothing;
    while (ReadFile(input, bytes, sizeof bytes, &got, NULL) && got > 0)
        if (!frame('I', bytes, got)) return 1;
    frame('E', "", 0);
    return 0;
}

static int port_beside(void) {
    wchar_t path[MAX_PATH * 4];
    wchar_t *dot;
    FILE *file;
    int port = 0;
    if (!GetModuleFileNameW(NULL, path, MAX_PATH * 4 - 8) || !(dot = wcsrchr(path, L'.'))) die("where is it?");
    wcscpy(dot, L".port");
    file = _wfopen(path, L"r");
    if (!file || fscanf(file, "%d", &port) != 1) die("no powershell.port beside it");
    fclose(file);
    return port;
}

int wmain(int count, wchar_t **arguments) {
    static char text[65536], bytes[65536];
    unsigned used = 0;
    WSADATA sockets;
    struct sockaddr_in where = {0};
    if (WSAStartup(MAKEWORD(2, 2), &sockets)) die("no sockets");
    where.sin_family = AF_INET;
    where.sin_port = htons((unsigned short)port_beside());
    where.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    listener = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(listener, (struct sockaddr *)&where, sizeof where)) die("nobody listens");
    for (int i = 1; i < count; i++) {
        int wrote = WideCharToMultiByte(CP_UTF8, 0, arguments[i], -1, text + used, (int)(sizeof text - used), NULL, NULL);
        if (wrote <= 0) die("too many arguments");
        used += (unsigned)wrote;
        text[used - 1] = '\n';
    }
    if (!frame('A', text, used)) die("the listener is gone");
    if (!CreateThread(NULL, 0, carry_input, NULL, 0, NULL)) die("no thread");
    for (;;) {
        unsigned char head[5];
        unsigned left;
        DWORD wrote;
        char code[16] = {0};
        if (!receive_all((char *)head, sizeof head)) die("the listener is gone");
        left = head[1] | (unsigned)head[2] << 8 | (unsigned)head[3] << 16 | (unsigned)head[4] << 24;
        if (head[0] == 'X') {
            if (left >= sizeof code || !receive_all(code, (int)left)) die("no exit code");
            ExitProcess((UINT)atoi(code));
        }
        while (left > 0) {
            unsigned part = left < sizeof bytes ? left : sizeof bytes;
            if (!receive_all(bytes, (int)part)) die("the listener is gone");
            WriteFile(GetStdHandle(head[0] == 'R' ? STD_ERROR_HANDLE : STD_OUTPUT_HANDLE), bytes, part, &wrote, NULL);
            left -= part;
        }
    }
}
