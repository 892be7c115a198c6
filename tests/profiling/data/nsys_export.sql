-- What `nsys export --type=sqlite` gives of a run on a GPU, by names and types those of Nsight Systems 2022.4 to 2023.4;
-- of each table the columns that are read, and few rows. 281474976710656 is a process, and + n a thread of it.
CREATE TABLE StringIds (id INTEGER NOT NULL PRIMARY KEY, value TEXT NOT NULL);
INSERT INTO StringIds VALUES
    (1, 'dense'), (2, 'prepare'), (3, 'sample'), (4, 'sdpa:flash'), (5, 'profiled'),
    (10, 'void at::native::vectorized_elementwise_kernel<(int)4, at::native::FillFunctor<float>, std::array<char *, (unsigned long)1>>(int, T2, T3)'),
    (11, 'void hsb::cuda::decode_kernel<__half, (int)128, (int)1>(hsb::cuda::DecodeArguments)'),
    (12, 'void hsb::cuda::merge_kernel<__half>(hsb::cuda::MergeArguments)'),
    (13, 'void pytorch_flash::flash_fwd_splitkv_kernel<Flash_fwd_kernel_traits<(int)128>>(pytorch_flash::Flash_fwd_params)'),
    (20, 'pthread_cond_wait'), (21, 'pthread_mutex_lock'), (22, 'sem_wait');

-- 75: a domain, 59: a range. Ranges of another domain have the same names; one is open at the end; one has a text.
CREATE TABLE NVTX_EVENTS (start INTEGER NOT NULL, end INTEGER, eventType INTEGER NOT NULL, text TEXT,
    globalTid INTEGER, textId INTEGER, domainId INTEGER, int64Value INTEGER);
INSERT INTO NVTX_EVENTS VALUES
    (-900, NULL, 75, 'hsbench', 281474976710709, NULL, 1, NULL),
    (-800, NULL, 75, 'another', 281474976710709, NULL, 2, NULL),
    ( 400, 9100, 59, NULL,     281474976710709, 5, 1, NULL),
    ( 500, 4000, 59, NULL,     281474976710709, 1, 1, 0),
    ( 600, 1000, 59, NULL,     281474976710709, 2, 1, 0),
    (1100, 3950, 59, NULL,     281474976710709, 3, 1, 0),
    (1100, 3950, 59, NULL,     281474976710709, 3, 2, 0),
    (4000, 5600, 59, NULL,     281474976710709, 4, 1, 0),
    (4100, 5550, 59, 'sample', 281474976710709, NULL, 1, 0),
    (6000, 9500, 59, NULL,     281474976710709, 1, 1, 1),
    (6100, 6500, 59, NULL,     281474976710709, 2, 1, 1),
    (6600, 9450, 59, NULL,     281474976710709, 3, 1, 1),
    (9600, NULL, 59, NULL,     281474976710709, 3, 1, 2);

CREATE TABLE CUPTI_ACTIVITY_KIND_RUNTIME (start INTEGER NOT NULL, end INTEGER NOT NULL, globalTid INTEGER,
    correlationId INTEGER, nameId INTEGER NOT NULL);
INSERT INTO CUPTI_ACTIVITY_KIND_RUNTIME VALUES
    ( 610,  620, 281474976710709, 120, 1), ( 630,  640, 281474976710709, 121, 1),
    (1200, 1220, 281474976710709, 122, 1), (1230, 1240, 281474976710709, 123, 1),
    (4200, 4220, 281474976710709, 124, 1), (6130, 6140, 281474976710709, 125, 1),
    (6700, 6720, 281474976710709, 126, 1), (6730, 6740, 281474976710709, 127, 1),
    (1300, 1310, 281474993487872, 122, 1);  -- another process's numbers

-- On the device later than launched: 122 ends after the sample on the host's clock would.
CREATE TABLE CUPTI_ACTIVITY_KIND_KERNEL (start INTEGER NOT NULL, end INTEGER NOT NULL, globalPid INTEGER,
    correlationId INTEGER, demangledName INTEGER NOT NULL, shortName INTEGER NOT NULL);
INSERT INTO CUPTI_ACTIVITY_KIND_KERNEL VALUES
    (1500, 1900, 281474976710656, 121, 10, 10),
    (2000, 3800, 281474976710656, 122, 11, 11), (3900, 4000, 281474976710656, 123, 12, 12),
    (4500, 5500, 281474976710656, 124, 13, 13), (6500, 6900, 281474976710656, 125, 10, 10),
    (7000, 8800, 281474976710656, 126, 11, 11), (8900, 9000, 281474976710656, 127, 12, 12);
CREATE TABLE CUPTI_ACTIVITY_KIND_MEMSET (start INTEGER NOT NULL, end INTEGER NOT NULL, globalPid INTEGER,
    correlationId INTEGER);
INSERT INTO CUPTI_ACTIVITY_KIND_MEMSET VALUES (1000, 1400, 281474976710656, 120);

-- Of the samples' thread: one in `prepare`, two in samples, one of these with a call inside it. And another thread's.
CREATE TABLE OSRT_API (start INTEGER NOT NULL, end INTEGER NOT NULL, globalTid INTEGER, nameId INTEGER NOT NULL);
INSERT INTO OSRT_API VALUES
    ( 700,  800, 281474976710709, 22),
    (2000, 2285, 281474976710709, 20), (2050, 2250, 281474976710709, 21),
    (4200, 4490, 281474976710709, 21),
    (1150, 3900, 281474976710710, 22);
