using Megatron.Grains.Cluster;
using Megatron.Grains.Jobs;

namespace Megatron.Grains.Tests.Jobs;

public sealed class LaunchPlannerTests
{
    [Fact]
    public void Plan_FitsOnOneNode_TakesTheSmallestThatHoldsItInDeviceOrder()
    {
        var devices = Devices(("b", 1), ("b", 0), ("a", 0), ("b", 2), ("b", 3), ("c", 0), ("c", 1), ("c", 2), ("c", 3), ("c", 4));
        var (plan, reason) = RecoveryPlanner.Plan(TrainingCluster.Spec("job", worldSize: 4, pipelineSize: 2), devices);
        Assert.NotNull(plan);
        Assert.Equal(["b/0", "b/1", "b/2", "b/3"], plan.Ranks.Select(rank => rank.Device.GrainKey));
        Assert.Equal([0, 0, 1, 1], plan.Ranks.Select(rank => rank.Stage));
        Assert.Equal([2, 3], plan.StageRanks(1).Select(rank => rank.Rank));
        Assert.Equal("4 ranks on node b", reason);
        Assert.Equal("local:", plan.RendezvousScheme);
    }

    [Fact]
    public void Plan_SeveralNodes_KeepsReplicasAndTensorBlocksTogether()
    {
        var layout = new JobLayout { TensorSize = 2, PipelineSize = 2 };
        var devices = Devices([.. Enumerable.Range(0, 4).Select(index => ("a", index)), .. Enumerable.Range(0, 4).Select(index => ("b", index))]);
        var (plan, reason) = RecoveryPlanner.Plan(TrainingCluster.Spec("job", worldSize: 8, pipelineSize: 2) with { Layout = layout }, devices);
        Assert.NotNull(plan);
        // Rank order is tp, dp, pp: replica 0 has ranks 0, 1 (stage 0) and 4, 5 (stage 1).
        Assert.Equal(["a", "a", "b", "b", "a", "a", "b", "b"], plan.Ranks.Select(rank => rank.Device.Node));
        Assert.Equal("8 ranks on nodes a (4), b (4)", reason);
        Assert.Equal("cluster:", plan.RendezvousScheme);
    }

    [Theory]
    [InlineData(4, 1, "asks for 4 ranks, but there are 3 free devices")]
    [InlineData(2, 4, "2 is not a positive multiple of the pipeline size 4")]
    [InlineData(0, 1, "0 is not a positive multiple")]
    public void Plan_ThatDoesNotFit_SaysWhy(int worldSize, int pipelineSize, string reason)
    {
        var (plan, why) = RecoveryPlanner.Plan(TrainingCluster.Spec("job", worldSize, pipelineSize), Devices(("a", 0), ("b", 0), ("b", 1)));
        Assert.Null(plan);
        Assert.Contains(reason, why, StringComparison.Ordinal);
    }

    [Theory]
    [InlineData(8, 4)] // 12 micro-batches: neither 8, 7 nor 5 replicas divide them
    [InlineData(3, 3)]
    [InlineData(2, 2)]
    [InlineData(1, 1)]
    public void Plan_ElasticJobOnFewerDevices_TakesTheMostReplicasThatDivideTheBatch(int numDevices, int replicas)
    {
        var spec = TrainingCluster.Spec("job", worldSize: 12, isElastic: true) with { Layout = new JobLayout { NumMicroBatches = 12 } };
        numDevices = numDevices == 8 ? 5 : numDevices;
        var (plan, reason) = RecoveryPlanner.Plan(spec, Devices([.. Enumerable.Range(0, numDevices).Select(index => ("a", index))]));
        Assert.Equal(replicas, plan?.WorldSize);
        Assert.Contains($"{replicas} of 12 data-parallel replicas", reason, StringComparison.Ordinal);
    }

    /// <summary>Random clusters, jobs and losses: whatever is planned is a legal layout on free devices of living silos, and nothing that fits is refused.</summary>
    [Fact]
    public void Pool_RandomLosses_NeverSharesADeviceAndNeverSplitsAReplica()
    {
        for (int seed = 0; seed < 300; seed++)
        {
            TestContext.Current.TestOutputHelper?.WriteLine($"seed {seed}");
            Simulate(new Random(seed));
        }
    }

    private static void Simulate(Random random)
    {
        var nodes = Enumerable.Range(0, random.Next(1, 9)).ToDictionary(node => $"n{node}", _ => random.Next(1, 9));
        var jobs = Enumerable.Range(0, 4).Select(index => RandomJob(random, index)).ToList();
        var attempts = jobs.ToDictionary(job => job.JobId, _ => 0);
        var state = DevicePoolState.Empty;
        for (int step = 0; step < 30; step++)
        {
            if (random.Next(3) == 0)
                nodes[$"n{random.Next(9)}"] = random.Next(0, 9);
            var devices = Devices([.. nodes.SelectMany(node => Enumerable.Range(0, node.Value).Select(index => (node.Key, index)))]);
            var job = jobs[random.Next(jobs.Count)];
            if (random.Next(4) == 0)
            {
                state = DevicePool.Release(state, job.JobId);
                continue;
            }
            DeviceAnswer answer;
            (state, answer) = DevicePool.Reserve(state, new DeviceRequest(job, ++attempts[job.JobId], []), devices, new Dictionary<string, HostMachine>());
            CheckAnswer(state, answer, job, devices);
        }
    }

    private static void CheckAnswer(DevicePoolState state, DeviceAnswer answer, JobSpec job, IReadOnlyCollection<ClusterDevice> devices)
    {
        var reserved = state.Reservations.SelectMany(reservation => reservation.Devices).ToList();
        Assert.Equal(reserved.Count, reserved.Distinct().Count());
        var others = state.Reservations.Where(reservation => reservation.JobId != job.JobId).SelectMany(reservation => reservation.Devices).ToHashSet();
        int free = devices.Count(device => !others.Contains(device.Id));
        if (answer.Plan is not { } plan)
        {
            Assert.NotEmpty(answer.Reason);
            bool isFirst = state.Queue.IsEmpty || state.Queue[0] == job.JobId;
            Assert.True(!isFirst || !Enumerable.Range(1, job.WorldSize / job.Grid.ReplicaSize).Any(replicas => job.Grid.Allows(replicas) && replicas * job.Grid.ReplicaSize <= free));
            return;
        }
        Assert.DoesNotContain(job.JobId, state.Queue);
        Assert.All(plan.Ranks, rank => Assert.Contains(new ClusterDevice(rank.Device, rank.Silo), devices));
        Assert.DoesNotContain(plan.Ranks, rank => others.Contains(rank.Device));
        Assert.Equal(0, plan.WorldSize % job.Grid.ReplicaSize);
        Assert.True(plan.WorldSize <= job.WorldSize);
        Assert.Equal(Enumerable.Range(0, plan.WorldSize), plan.Ranks.Select(rank => rank.Rank));
        Assert.All(plan.Ranks, rank => Assert.Equal(rank.Rank / (plan.WorldSize / job.Grid.PipelineSize), rank.Stage));
    }

    private static JobSpec RandomJob(Random random, int index)
    {
        int[] sizes = [1, 2, 4];
        var layout = new JobLayout { TensorSize = sizes[random.Next(3)], PipelineSize = sizes[random.Next(3)], NumMicroBatches = 24 };
        int[] replicas = [1, 2, 3, 4, 6];
        return TrainingCluster.Spec($"job{index}", layout.ReplicaSize * replicas[random.Next(5)], layout.PipelineSize, isElastic: true) with { Layout = layout };
    }

    private static List<ClusterDevice> Devices(params (string Node, int Index)[] devices) =>
        [.. devices.Select(device => new ClusterDevice(new DeviceId(device.Node, device.Index), "silo of " + device.Node))];
}
