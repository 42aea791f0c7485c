-- TapFinger's submit hook, a module that a site's job_submit.lua calls. It can only help: a batch job that asks for it
-- ("tapfinger ..." in the comment, or a partition that the site file manages) is held back for a short lease and its
-- request is written in the one form that the agent can change later. Everything else, and everything while the agent
-- is not in charge, passes untouched. Decides nothing and waits for nothing: slurmctld stands still while it runs.
--
--   pcall(function() dofile("/etc/slurm/tapfinger.lua").join() end)
--
-- at the end of a site's job_submit.lua, after its functions and before its last return. In place of it a script may
-- call tapfinger.submit and tapfinger.modify itself, under pcall.
--
-- Runs on Lua 5.1 to 5.4. Reads tapfinger_conf.lua beside it once, when it is loaded.

local tapfinger = {}

local MARK = "tapfinger"
local FRESH_S = 15 -- an agent that has not written its sign of life for this long is not in charge
local LEASE_MAX_S = 86400
local AMOUNT_MAX = 2 ^ 40
local ESLURM_ACCESS_DENIED = 2002

-- Options that the agent could not keep when it moves or resizes a job: such a job is Slurm's.
local UNKEPT_TEXTS = {
  { "req_nodes", "--nodelist" },
  { "exc_nodes", "--exclude" },
  { "features", "--constraint" },
  { "batch_features", "--batch" },
  { "prefer", "--prefer" },
  { "reservation", "--reservation" },
  { "licenses", "--licenses" },
  { "burst_buffer", "--bb" },
  { "cpus_per_tres", "--cpus-per-gpu" },
  { "mem_per_tres", "--mem-per-gpu" },
  { "tres_per_socket", "--gpus-per-socket" },
}
local UNKEPT_NUMBERS = {
  { "shared", "--exclusive or --oversubscribe" },
  { "ntasks_per_gpu", "--ntasks-per-gpu" },
  { "ntasks_per_socket", "--ntasks-per-socket" },
  { "ntasks_per_core", "--ntasks-per-core" },
  { "sockets_per_node", "--sockets-per-node" },
  { "cores_per_socket", "--cores-per-socket" },
  { "threads_per_core", "--threads-per-core or --hint" },
  { "pn_min_tmp_disk", "--tmp" },
}


local function given_text(value)
  return type(value) == "string" and value ~= ""
end


local function log_error(text)
  -- Outside slurmctld there is nobody to tell.
  if slurm and slurm.log_error then slurm.log_error("%s", "tapfinger: " .. text) end
end


-- The line by which a submission is found again in slurmctld's log, the agent's and the server's.
local function log_lease(ticket, lease_s)
  if slurm and slurm.log_info then slurm.log_info("tapfinger: event=leased ticket=%s lease_s=%d", ticket, lease_s) end
end


local function load_site()
  local here = debug.getinfo(1, "S").source:match("^@(.*/)") or "./"
  local site = assert(loadfile(here .. "tapfinger_conf.lua"))()
  assert(type(site) == "table" and type(site.hook_file) == "string", "it returns no table with hook_file")
  site.partitions = site.partitions or {}
  return site
end


local found, site = pcall(load_site)
if not found then
  log_error("jobs pass untouched, the site file cannot be used: " .. tostring(site))
  site = nil
end

-- LuaSocket's unix datagram sockets, where slurmctld's Lua has them; looked for once, as a search reads many folders.
local function datagram_sockets()
  local library = require("socket.unix")
  return type(library) == "table" and library.dgram or nil
end


local datagrams = nil
if site and given_text(site.wake_socket) then
  local there, sockets = pcall(datagram_sockets)
  datagrams = there and sockets or nil
end

-- Tells submissions apart in AdminComment: differs between two loads of this file, and counts within one.
-- An address alone may come again; the processor time that slurmctld has used does not.
local salt = ("%s.%x"):format(tostring({}):match("0x(%x+)") or "0", math.floor(os.clock() * 1e6) % 2 ^ 31)
local tickets = 0


local function given_number(value)
  -- NO_VAL and INFINITE of 8 bits never occur in the fields read here; those of 16, 32 and 64 bits mean "not given".
  return type(value) == "number" and value ~= 65534 and value ~= 65535 and value < 4294967294
end


local function split(text, separators)
  local words = {}
  for word in text:gmatch("[^" .. separators .. "]+") do words[#words + 1] = word end
  return words
end


-- The mark in the comment. The grammar is that of tapfinger_hpc/units.py; one test holds both against one table.


local function ordered(least, greatest, lowest)
  if least < lowest or greatest < least or greatest > AMOUNT_MAX then return nil end
  return { least = least, greatest = greatest }
end


local function ends_of(text, amount)
  local least = text:match("^" .. amount .. "$")
  if least then return least, least end
  return text:match("^(" .. amount .. ")%-(" .. amount .. ")$")
end


local function count_range(text, lowest)
  local least, greatest = ends_of(text, "[0-9]+")
  if not least or #least > 6 or #greatest > 6 then return nil end
  return ordered(tonumber(least), tonumber(greatest), lowest)
end


local UNIT_MB = { K = 1 / 1024, [""] = 1, M = 1, G = 1024, T = 1024 * 1024 }


local function memory_mb(text)
  local digits, unit = text:match("^([0-9]+)(%a?)$")
  if #digits > 9 then return nil end
  return math.ceil(tonumber(digits) * UNIT_MB[unit:upper()])
end


local function memory_range(text)
  local least, greatest = ends_of(text, "[0-9]+[KMGTkmgt]?")
  local least_mb, greatest_mb = least and memory_mb(least), greatest and memory_mb(greatest)
  if not least_mb or not greatest_mb then return nil end
  return ordered(least_mb, greatest_mb, 1)
end


local function class_name(text)
  return #text <= 64 and text:match("^[A-Za-z0-9_.+-]+$") or nil
end


local function lease_seconds(text)
  local seconds = #text <= 9 and text:match("^[0-9]+$") and tonumber(text)
  return seconds and seconds >= 1 and seconds <= LEASE_MAX_S and seconds or nil
end


local KEYS = {
  gpus = { function(text) return count_range(text, 0) end, "a number or a range such as 1-4" },
  cpus = { function(text) return count_range(text, 1) end, "a number or a range such as 2-16" },
  mem = { memory_range, "an amount or a range such as 4G-32G" },
  class = { class_name, "1 to 64 letters, digits, '_', '.', '+' or '-'" },
  lease = { lease_seconds, "1 to 86400 seconds" },
}


-- Returns the mark; nil where the comment has none; nil and the reason where it cannot be read.
function tapfinger.parse_mark(comment)
  local words = split(comment or "", " \t\n\v\f\r")
  if words[1] ~= MARK then return nil end

  local mark = {}
  for position = 2, #words do
    local word = words[position]
    local key, text = word:match("^([^=]*)=(.+)$")
    local reader = key and KEYS[key]
    if not reader then
      return nil, ("comment part '%s': expected key=value with gpus, cpus, mem, class or lease"):format(word)
    end
    if mark[key] ~= nil then return nil, ("comment part '%s': %s is given twice"):format(word, key) end
    local value = reader[1](text)
    if value == nil then return nil, ("comment part '%s': expected %s"):format(word, reader[2]) end
    mark[key] = value
  end
  return mark
end


-- What the job asks for.


local function partitions_of(job_desc, part_list)
  if given_text(job_desc.partition) then return split(job_desc.partition, ",") end
  for name, partition in pairs(part_list or {}) do
    if partition.flag_default == 1 then return { name } end
  end
  return {}
end


local function known_partitions(names)
  local known = {}
  for _, name in ipairs(names) do known[#known + 1] = site.partitions[name] end
  return known
end


local function all_managed(names)
  for _, name in ipairs(names) do
    local partition = site.partitions[name]
    if not partition or not partition.managed then return false end
  end
  return #names > 0
end


-- One GPU request such as "gres:gpu:2", "gres/gpu:a100:2" or "gres:gpu".
local function read_gpus(text)
  local request = nil
  for _, entry in ipairs(split(text, ",")) do
    local separator = entry:match("^gres([:/])")
    local rest = entry:gsub("^gres[:/]", ""):match("^gpu(.*)$")
    if not rest then return nil, "GRES other than gpu (" .. entry .. ")" end
    if request then return nil, "several GPU types in one request" end
    local kind, count = rest, "1"
    if rest:find("[:=][0-9]+$") then kind, count = rest:match("^(.-)[:=]([0-9]+)$") end
    if not (kind == "" or kind:find("^:[^:=]+$")) then return nil, "a GPU request of unknown form (" .. entry .. ")" end
    request = { count = tonumber(count), kind = kind, separator = separator }
  end
  return request
end


local function per_task_gpus(text)
  -- From 23.11 on the CPUs of -c stand in the same field; cpus_per_task has them as well.
  local entries = {}
  for _, entry in ipairs(split(text, ",")) do
    if not entry:find("^cpu[:=][0-9]+$") then entries[#entries + 1] = entry end
  end
  return table.concat(entries, ",")
end


-- The GPUs of the whole job, however they were spelled: { count, kind, separator }, count 0 where none are asked for.
local function gpus_of(job_desc, tasks)
  local total = nil
  local spellings = {
    { job_desc.tres_per_node, 1 },
    { job_desc.tres_per_job, 1 },
    { given_text(job_desc.tres_per_task) and per_task_gpus(job_desc.tres_per_task), tasks },
  }
  for index = 1, 3 do
    local text, times = spellings[index][1], spellings[index][2]
    if given_text(text) then
      local request, why = read_gpus(text)
      if not request then return nil, why end
      request.count = request.count * times
      if total and (total.count ~= request.count or total.kind ~= request.kind) then
        return nil, "GPU requests that only fit several nodes"
      end
      total = request
    end
  end
  return total or { count = 0, kind = "" }
end


local function unkept_option(job_desc)
  for _, option in ipairs(UNKEPT_TEXTS) do
    if given_text(job_desc[option[1]]) then return option[2] end
  end
  for _, option in ipairs(UNKEPT_NUMBERS) do
    if given_number(job_desc[option[1]]) then return option[2] end
  end
  -- From 23.11 on --gpus-per-task binds by itself; that goes away with it.
  if given_text(job_desc.tres_bind) and not job_desc.tres_bind:find("per_task", 1, true) then return "--gpu-bind" end
end


local function wants_several_nodes(job_desc, tasks)
  for _, count in ipairs({ job_desc.min_nodes or 0, job_desc.max_nodes or 0 }) do
    if given_number(count) and count > 1 then return true end
  end
  local per_node = job_desc.ntasks_per_node
  return given_number(per_node) and per_node > 0 and per_node < tasks
end


-- The request as it stands: { tasks, cpus, gpus, mem_mb }; nil and the reason where it is not ours to change.
local function request_of(job_desc)
  if given_number(job_desc.het_job_offset) then return nil, "a part of a heterogeneous job" end
  if not job_desc.script then return nil, "not a batch job" end
  if job_desc.begin_time ~= 0 then return nil, "it has its own --begin" end

  local option = unkept_option(job_desc)
  if option then return nil, "it uses " .. option end

  local tasks = given_number(job_desc.num_tasks) and job_desc.num_tasks or 1
  if wants_several_nodes(job_desc, tasks) then return nil, "it may use several nodes" end

  local cpus_per_task = given_number(job_desc.cpus_per_task) and job_desc.cpus_per_task or 1
  local cpus = tasks * cpus_per_task
  if given_number(job_desc.min_cpus) and job_desc.min_cpus < cpus then return nil, "it uses --overcommit" end
  if given_number(job_desc.pn_min_cpus) and job_desc.pn_min_cpus > cpus_per_task then
    return nil, "it uses --mincpus"
  end

  if given_number(job_desc.min_cpus) then cpus = job_desc.min_cpus end

  local gpus, why = gpus_of(job_desc, tasks)
  if not gpus then return nil, "it has " .. why end

  local mem_mb = nil
  if given_number(job_desc.min_mem_per_node) then mem_mb = job_desc.min_mem_per_node end
  if given_number(job_desc.min_mem_per_cpu) then mem_mb = job_desc.min_mem_per_cpu * cpus end
  return { tasks = tasks, cpus = cpus, gpus = gpus, mem_mb = mem_mb }
end


-- Whether one node can hold it: a job that stock Slurm would spread over nodes must not be tied to one.


local function default_memory_mb(partition, cpus)
  if given_number(partition.def_mem_per_cpu) then return partition.def_mem_per_cpu * cpus end
  if given_number(partition.def_mem_per_node) then return partition.def_mem_per_node end
  return 0
end


local function fits(request, least, largest, partition)
  local cpus_max = largest.cpus
  if given_number(partition.max_cpus_per_node) then cpus_max = math.min(cpus_max, partition.max_cpus_per_node) end
  local mem_mb = request.mem_mb or default_memory_mb(partition, request.cpus)
  return math.max(request.cpus, least.cpus) <= cpus_max
    and math.max(request.gpus.count, least.gpus) <= largest.gpus
    and math.max(mem_mb, least.mem_mb) <= largest.mem_mb
end


-- The range of a resource that the mark or a partition declares; nil where it may not change.
local function declared(resource, mark, names)
  if mark and mark[resource] then return mark[resource] end
  for _, partition in ipairs(known_partitions(names)) do
    local range = partition.managed and partition[resource .. "_range"]
    if given_text(range) then return (tapfinger.parse_mark(MARK .. " " .. resource .. "=" .. range) or {})[resource] end
  end
end


local function smallest(mark, names, tasks)
  local least = {}
  for _, resource in ipairs({ "cpus", "gpus", "mem" }) do
    local range = declared(resource, mark, names)
    least[resource] = range and range.least or 0
  end
  return { cpus = math.ceil(least.cpus / tasks) * tasks, gpus = least.gpus, mem_mb = least.mem }
end


-- The reason why the agent could never place it on one node; nil where it could.
local function misfit(job_desc, part_list, names, mark, request)
  local cpus = declared("cpus", mark, names)
  local least = smallest(mark, names, request.tasks)
  if cpus and least.cpus > cpus.greatest then
    return ("no multiple of its %d tasks lies in its range of CPUs"):format(request.tasks)
  end
  if request.mem_mb == 0 and not declared("mem", mark, names) then
    return "it asks for all memory of a node (--mem=0) and declares no range"
  end
  for _, name in ipairs(names) do
    local largest, partition = site.partitions[name], (part_list or {})[name] or {}
    if given_number(partition.min_nodes_orig) and partition.min_nodes_orig > 1 then
      return ("partition %s gives several nodes to a job"):format(name)
    end
    if partition.max_share == 0 then return ("partition %s gives whole nodes"):format(name) end
    if not largest then
      if job_desc.max_nodes ~= 1 then return ("partition %s is unknown to it; --nodes=1 would do"):format(name) end
    elseif not fits(request, least, largest, partition) then
      return ("it does not fit on one node of partition %s"):format(name)
    end
  end
end


-- What is written to the job.


local function may_change(resource, requested, mark, names)
  local range = declared(resource, mark, names)
  return range ~= nil and not (range.least == requested and range.greatest == requested)
end


local function gpu_text(gpus)
  if gpus.count == 0 then return "" end
  local separator = gpus.separator or site.gres_separator or ":"
  return ("gres%sgpu%s:%d"):format(separator ~= "" and separator or ":", gpus.kind, gpus.count)
end


-- Variables that Slurm writes at submission and never again: they would tell a resized job its old amounts, and srun
-- inside it would ask for them. An amount that cannot change keeps its variable.
local function environment_of(job_desc, tasks, gpus_change, cpus_change)
  local environment = {}
  local function blank(name)
    if given_text(job_desc.environment[name]) then environment[name] = "" end
  end
  if gpus_change then
    for _, name in ipairs({ "SLURM_GPUS", "SLURM_GPUS_PER_NODE", "SLURM_GPUS_PER_TASK" }) do blank(name) end
    -- srun would still bind each of several tasks, to no GPU at all, where the number of GPUs per task is blank. Newer
    -- ones take it back by name (24.11); 22.05 does not, there it is the closest: all, or those at the task's socket.
    if given_text(job_desc.environment.SLURM_TRES_BIND) then
      environment.SLURM_TRES_BIND = "gres/gpu:none"
    elseif environment.SLURM_GPUS_PER_TASK and tasks > 1 then
      environment.SLURM_GPU_BIND = "closest"
    end
  end
  if gpus_change or cpus_change then blank("SLURM_TRES_PER_TASK") end
  -- Slurm refreshes this one when CPUsPerTask is updated, but only if it is there. Without -c a task has one CPU.
  if cpus_change and not given_text(job_desc.environment.SLURM_CPUS_PER_TASK) then
    environment.SLURM_CPUS_PER_TASK = "1"
  end
  return environment
end


local function appended(admin_comment, text)
  return given_text(admin_comment) and admin_comment .. " " .. text or text
end


local function leave(job_desc, why)
  job_desc.admin_comment = appended(job_desc.admin_comment, MARK .. " left: " .. why)
end


-- Each assignment keeps the request what it is, and the lease comes last: wherever this stopped, the job would run.
local function take(job_desc, request, environment, lease_s)
  tickets = tickets + 1
  local now = os.time()
  local gpus = gpu_text(request.gpus)
  local ticket = ("%x.%s.%d"):format(now, salt, tickets)
  local admin_comment = appended(job_desc.admin_comment, ("%s lease=%d ticket=%s"):format(MARK, lease_s, ticket))
  local respelled = { "tres_per_job", "tres_per_task", "tres_bind" }

  if gpus ~= (job_desc.tres_per_node or "") then job_desc.tres_per_node = gpus end
  for _, field in ipairs(respelled) do
    if given_text(job_desc[field]) then job_desc[field] = "" end
  end
  job_desc.min_nodes = 1
  job_desc.max_nodes = 1
  for name, value in pairs(environment) do job_desc.environment[name] = value end
  job_desc.admin_comment = admin_comment
  job_desc.begin_time = now + lease_s
  log_lease(ticket, lease_s)
end


-- The agent, as far as the hook may know it.


-- The lease that the agent wants now; nil where no agent is in charge.
local function agents_lease_s()
  local file = io.open(site.hook_file, "r")
  if not file then return nil end
  local line = file:read(100)
  file:close()
  local mode, epoch_s, lease_s = (line or ""):match("^(%l+) ([0-9]+)%.?[0-9]* ([0-9]+)")
  if mode ~= "enforce" or math.abs(os.time() - tonumber(epoch_s)) > FRESH_S then return nil end
  return lease_seconds(lease_s)
end


-- Tells the agent to look now. Never waits: a full or missing receiver is passed over.
local function wake()
  if not datagrams then return end
  local opened, socket = pcall(datagrams)
  if not opened or not socket then return end
  pcall(function()
    socket:settimeout(0)
    socket:sendto("submit\n", site.wake_socket)
  end)
  socket:close()
end


local function consider(job_desc, part_list)
  local mark, malformed = tapfinger.parse_mark(job_desc.comment)
  local names = partitions_of(job_desc, part_list)
  local marked = mark or malformed
  if not marked and not (job_desc.script and all_managed(names)) then return end

  local lease_s = agents_lease_s()
  if not lease_s then return end
  if malformed then
    leave(job_desc, malformed)
    slurm.log_user("%s", "tapfinger: " .. malformed .. "; the job is left to Slurm as it is")
    return
  end

  local request, why = request_of(job_desc)
  if request then why = misfit(job_desc, part_list, names, mark, request) end
  if why then return leave(job_desc, why) end

  local gpus_change = may_change("gpus", request.gpus.count, mark, names)
  local cpus_change = may_change("cpus", request.cpus, mark, names)
  local environment = environment_of(job_desc, request.tasks, gpus_change, cpus_change)
  take(job_desc, request, environment, mark and mark.lease or lease_s)
  wake()
end


-- To be called from slurm_job_submit. Never raises, never refuses.
function tapfinger.submit(job_desc, part_list, submit_uid)
  if not site then return end
  local ok, why = pcall(consider, job_desc, part_list)
  if not ok then log_error("a job passes as it is: " .. tostring(why)) end
end


local function refusal(job_desc, job_rec, modify_uid)
  local leased = (job_rec.admin_comment or ""):find(MARK .. " lease=", 1, true) ~= nil
  local agent = site.agent_uid
  if agent and agent ~= 0 and modify_uid == agent then
    return not leased and "the agent may only change jobs that it leased" or nil
  end

  -- Operators, SlurmUser and root change jobs that are not their own; the agent may be any of these.
  local by_owner = modify_uid == job_rec.user_id and modify_uid ~= 0
  if leased and by_owner and (job_desc.begin_time or 0) ~= 0 and agents_lease_s() then
    return "StartTime of this job belongs to tapfinger while it looks for a place; scontrol hold delays the job"
  end
end


-- To be called from slurm_job_modify. Returns a Slurm error code to refuse, or nothing. Never raises.
function tapfinger.modify(job_desc, job_rec, part_list, modify_uid)
  if not site then return end
  local ok, why = pcall(refusal, job_desc, job_rec, modify_uid)
  if not ok then return log_error("an update passes as it is: " .. tostring(why)) end
  if not why then return end

  -- Slurm up to 23.02 writes this to its own log only.
  pcall(slurm.log_user, "%s", "tapfinger: " .. why)
  return slurm.ESLURM_ACCESS_DENIED or ESLURM_ACCESS_DENIED
end


-- For a site's own job_submit.lua: jobs and updates that its functions let pass go on to the two above.
function tapfinger.join()
  if rawget(_G, "tapfinger_joined") then return end
  tapfinger_joined = true
  for name, ours in pairs({ slurm_job_submit = tapfinger.submit, slurm_job_modify = tapfinger.modify }) do
    local sites = _G[name]
    _G[name] = function(...)
      local code = slurm.SUCCESS
      if sites then code = sites(...) end
      if code ~= nil and code ~= slurm.SUCCESS then return code end
      local ok, refused = pcall(ours, ...)
      return ok and refused or code
    end
  end
end


return tapfinger
