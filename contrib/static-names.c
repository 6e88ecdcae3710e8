/* Linked into a static binary with glibc. The C library then looks names up in files and by DNS, and loads none of
 * the host's modules (/etc/nsswitch.conf): they are made for the host's version of the C library, and crash here. */
#include <nss.h>

__attribute__((constructor)) static void look_names_up_without_modules(void)
{
    __nss_configure_lookup("hosts", "files dns");
    __nss_configure_lookup("passwd", "files");
}
