/* What redis.c has Redis do: Lua, one script an operation. Arguments and answers are described beside each. */
#ifndef INFERD_STORE_REDIS_SCRIPTS_H
#define INFERD_STORE_REDIS_SCRIPTS_H

#define REDIS_PREFIX  "{inferd}:"        /* of every key */
#define REDIS_CHANNEL "{inferd}:changes" /* ids of jobs that changed */

extern const char *const redis_job_create,
    *const redis_job_get, *const redis_job_list, *const redis_job_claim,
                                                     *const redis_job_update,
                                                         *const redis_job_cancel,
                                                             *const redis_job_requeue,
                                                                 *const redis_session_get,
                                                                     *const redis_session_put,
                                                                         *const redis_session_delete,
                                                                             *const redis_session_list,
                                                                                 *const redis_lease_take,
                                                                                     *const redis_lease_give,
                                                                                         *const redis_value_claim,
                                                                                             *const redis_value_set,
                                                                                                 *const redis_prune;

#endif
