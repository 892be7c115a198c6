"""A file as hsbench/3 wrote it, which is read, shown and compared still."""

from __future__ import annotations

OLD_HEAD = (
    "schema,phase,method,device,workload,batch,q_heads,kv_heads,head_dim,dtype,q_len,seq,key_sparsity,value_sparsity,"
    "achieved_sparsity,status,reason,time_us,time_us_p25,time_us_p75,samples,stop,speedup,speedup_lo,speedup_hi,"
    "baseline,kv_bytes,kv_ratio,read_bytes,gb_per_s,tflop_per_s,percent_of_peak,peak,rel_error,cache,sm_clock_mhz,"
    "power_w,throttled,seed,tensors,memory_clock_mhz,temperature_c,throttle_reasons,throttled_share,shared,"
    "estimated_bytes,peak_bytes,gpu_used_bytes,sustain_s\n"
)
OLD_ROWS = (
    "hsbench/3,decode,sdpa:flash,cpu,Llama-3.1-8B,1,32,8,128,fp16,1,1024,0.5,0.5,,ok,,3514.2,3489.44,3539.8,9,budget,"
    "0.059,0.0575,0.0607,dense,4194304,1.0,4194304,1.19353,,11.9,read,0.000217,cold (flushed),,,,0,gaussian,,,,,true,"
    "0,1052672,,0.0\n"
    'hsbench/3,decode,unstructured,cpu,Llama-3.1-8B,1,32,8,128,fp16,1,1024,0.5,0.5,,oom,"needs 34 GiB, 15 are free",,'
    ",,,,,,,,,,,,,,,,,,,,0,gaussian,,,,,,36507222016,,,\n"
)
