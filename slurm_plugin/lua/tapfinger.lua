-- TapFinger's submit hook, as a module that a site's own job_submit.lua calls. First cut: knows its place and leaves every job as it is.
local tapfinger = {}


function tapfinger.submit(job_desc, part_list, submit_uid) end


function tapfinger.modify(job_desc, job_rec, part_list, modify_uid) end


return tapfinger
