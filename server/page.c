#include "server/api.h"
void kn_api_page(kn_call *call)
{
    kn_call_reply(call, 404, NULL, NULL, 0, NULL, 0);
}
