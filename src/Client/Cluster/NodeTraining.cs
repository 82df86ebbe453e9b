using System.Globalization;
using System.Net.Sockets;
using Megatron.Client.Cli;
using Megatron.Client.Jobs;
using Megatron.Compute.Configuration;
using Megatron.Compute.Training;
using Megatron.Grains.Cluster;
using Megatron.Grains.Jobs;
using Megatron.Silo;

namespace Megatron.Client.Cluster;

/// <summary>
/// A training on several nodes without a Redis, started like the reference: the same command on every node. Each console hosts its node's silo;
/// they cluster around the silo of node 0, which submits the job; all follow it to its end and exit with the same code.
/// </summary>
/// <param name="console">Where to print.</param>
/// <param name="time">Clock of retries and folder names.</param>
public sealed class NodeTraining(CommandConsole console, TimeProvider time)
{
    private static readonly TimeSpan pollInterval = TimeSpan.FromMilliseconds(250);
    private static readonly TimeSpan partingPatience = TimeSpan.FromSeconds(20);

    /// <summary>Runs this node's part; returns the exit code of the job.</summary>
    /// <exception cref="ConfigException">A variable or an option is wrong, or a node did not come.</exception>
    public async Task<int> RunAsync(ParsedOptions options, CancellationToken cancellationToken)
    {
        var launch = await NodeLaunch.ReadAsync(options.Environment, cancellationToken);
        var patience = TimeSpan.FromMinutes(options.Config.DistributedTimeoutMinutes);
        // On every node: a mistake ends all of them, with the same sentence and code, before they wait for one another.
        RunPreparation.Check(options.Config, options.Given, options.Verb == "pt", options.Environment.WorldSize, time);
        if (launch.IsMaster) SiloSetup.RequireFree("MASTER_PORT", launch.Master.Address, launch.Master.Port);
        else await WaitForMasterAsync(launch, patience, cancellationToken);

        using var signals = StopSignals.OfThisProcess();
        using var stop = cancellationToken.Register(signals.Raise);
        await using var silo = await StartSiloAsync(launch, options.Environment);
        try
        {
            int exitCode = launch.IsMaster
                ? await SubmitAndFollowAsync(silo.Grains, launch, options, patience, signals)
                : await FollowAsync(silo.Grains, launch, patience, signals);
            await PartAsync(silo.Grains, launch);
            return exitCode;
        }
        catch (Exception fault) when (ClusterFollower.IsLoss(fault))
        {
            console.Error.WriteLine($"error: NET004 The job is out of reach: the silo of node 0 at {launch.Master} does not answer; its console says why.");
            return ExitCode.Failed;
        }
    }

    private Task<SiloHost> StartSiloAsync(NodeLaunch launch, LaunchEnvironment variables)
    {
        var options = launch.SiloOptions();
        return SiloHost.StartAsync(options, services => SiloWorkers.Of(options, variables.LibTorch, services, time));
    }

    private async Task WaitForMasterAsync(NodeLaunch launch, TimeSpan patience, CancellationToken cancellation)
    {
        console.Out.WriteLine($"{launch.NodeName}: waiting for node 0 at {launch.Master}");
        console.Out.Flush();
        long start = time.GetTimestamp();
        while (true)
        {
            try
            {
                using var client = new TcpClient(launch.Master.AddressFamily);
                await client.ConnectAsync(launch.Master, cancellation);
                return;
            }
            catch (SocketException) when (time.GetElapsedTime(start) < patience)
            {
                await Task.Delay(pollInterval, time, cancellation);
            }
            catch (SocketException)
            {
                throw new ConfigException("NET005", string.Create(CultureInfo.InvariantCulture,
                    $"Node 0 does not answer at {launch.Master} for {patience.TotalMinutes:0.#} minutes; start it, or correct MASTER_ADDR and MASTER_PORT."));
            }
        }
    }

    private async Task<int> SubmitAndFollowAsync(IGrainFactory grains, NodeLaunch launch, ParsedOptions options, TimeSpan patience, StopSignals signals)
    {
        await grains.GetGrain<INodeBarrier>(INodeBarrier.Key).Open();
        await WaitForNodesAsync(grains, launch, patience, signals);
        if (signals.StopRequested.IsCompleted) return JobFollower.ExitAborted;
        int worldSize = options.Environment.WorldSize;
        var run = RunPreparation.Prepare(options.Config, options.Given, options.Verb == "pt", worldSize, time);
        using var view = JobView.ForRun(console, run, options.Config.Output);
        view.SayStart(run);
        var spec = JobSpecs.Of(run, worldSize, isElastic: false);
        var job = grains.GetGrain<IJobGrain>(spec.JobId);
        var answer = await job.Submit(spec);
        if (!answer.Accepted) throw new ConfigException("JOB001", answer.Message);
        int exitCode = await JobFollower.FollowAsync(job, view.Console, signals);
        if (exitCode == ExitCode.Ok) view.SayWhereTheResultsAre(run.Folder);
        return exitCode;
    }

    private async Task WaitForNodesAsync(IGrainFactory grains, NodeLaunch launch, TimeSpan patience, StopSignals signals)
    {
        long start = time.GetTimestamp();
        int shown = 0;
        while (!signals.StopRequested.IsCompleted)
        {
            var status = await grains.GetGrain<IMembershipGrain>(IMembershipGrain.Key).GetStatus();
            int present = status.Silos.Where(silo => silo.Devices.Count > 0).Select(silo => silo.Node).Distinct(StringComparer.Ordinal).Count();
            if (present >= launch.NumNodes) return;
            if (present != shown) console.Out.WriteLine(string.Create(CultureInfo.InvariantCulture, $"{present} of {launch.NumNodes} nodes are here"));
            console.Out.Flush();
            shown = present;
            if (time.GetElapsedTime(start) > patience)
            {
                throw new ConfigException("NET006", string.Create(CultureInfo.InvariantCulture,
                    $"Only {present} of NNODES = {launch.NumNodes} nodes came within {patience.TotalMinutes:0.#} minutes; start the others with the same MASTER_ADDR and MASTER_PORT."));
            }
            await Task.WhenAny(Task.Delay(pollInterval, time), signals.StopRequested);
        }
    }

    private async Task<int> FollowAsync(IGrainFactory grains, NodeLaunch launch, TimeSpan patience, StopSignals signals)
    {
        long start = time.GetTimestamp();
        while (true)
        {
            var jobs = await grains.GetGrain<IJobDirectory>(IJobDirectory.Key).List();
            if (jobs.Count > 0)
            {
                string id = jobs[0].JobId;
                console.Out.WriteLine($"{launch.NodeName}: follows job {id}; node 0 shows its steps");
                console.Out.Flush();
                using var view = JobView.ForOnlooker(console, "text", spec: null);
                return await JobFollower.FollowAsync(grains.GetGrain<IJobGrain>(id), new PhasesOnly(view.Console), signals);
            }
            if (signals.StopRequested.IsCompleted) return JobFollower.ExitAborted;
            if (time.GetElapsedTime(start) > patience)
                throw new ConfigException("NET007", $"Node 0 at {launch.Master} has submitted no job; see its console.");
            await Task.WhenAny(Task.Delay(pollInterval, time), signals.StopRequested);
        }
    }

    // A node leaves when all that are still here have seen the end; node 0, which holds the cluster together, when it is alone. Who has left counts no
    // more: the barrier may forget them when the silo that knew where it is was theirs.
    private async Task PartAsync(IGrainFactory grains, NodeLaunch launch)
    {
        long start = time.GetTimestamp();
        try
        {
            while (time.GetElapsedTime(start) < partingPatience)
            {
                int arrived = await grains.GetGrain<INodeBarrier>(INodeBarrier.Key).Arrive(launch.NodeRank);
                var status = await grains.GetGrain<IMembershipGrain>(IMembershipGrain.Key).GetStatus();
                int present = status.Silos.Count(silo => silo.Status == "Active");
                if (launch.IsMaster ? present <= 1 : arrived >= present) break;
                await Task.Delay(pollInterval, time);
            }
        }
        catch (Exception fault) when (ClusterFollower.IsLoss(fault))
        {
            // Whoever is gone already has not waited; the outcome is known all the same.
        }
    }

    /// <summary>Leaves the steps to the console of node 0.</summary>
    private sealed class PhasesOnly(IJobConsole inner) : IJobConsole
    {
        public void Show(JobEvent item)
        {
            if (item is JobPhaseChanged) inner.Show(item);
        }

        public void Say(string line) => inner.Say(line);

        public void SayError(string line) => inner.SayError(line);
    }
}
