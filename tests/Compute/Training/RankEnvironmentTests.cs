using System.Net;
using Megatron.Compute.Configuration;
using Megatron.Compute.Distributed;
using Megatron.Compute.Native;
using Megatron.Compute.Training;
using Megatron.Testing;
using static TorchSharp.torch;

namespace Megatron.Compute.Tests.Training;

public sealed class RankEnvironmentTests
{
    /// <summary>Two attempts one after the other; over TCP each rank has an environment of its own, as in a process of its own.</summary>
    [Theory]
    [InlineData(true)]
    [InlineData(false)]
    public void ProcessGroups_EndpointSaysWhere_RanksOfAnAttemptMeet(bool isTcp)
    {
        using var server = new TcpRendezvousServer(new IPEndPoint(IPAddress.Loopback, 0), 16);
        var shared = RankEnvironment.InProcess(new LibTorchOptions(), TimeProvider.System, 2);
        RankThreads.Run(2, rank =>
        {
            using var leaks = LeakCheck.Start();
            var environment = isTcp ? RankEnvironment.InProcess(new LibTorchOptions(), TimeProvider.System, 1) : shared;
            for (var attempt = 1; attempt <= 2; attempt++)
            {
                var endPoint = isTcp ? $"tcp://127.0.0.1:{server.EndPoint.Port}/{attempt}" : $"local:job/{attempt}";
                var start = new StartRank(new AttemptId("job", attempt), new TrainingConfig { DistributedTimeoutMinutes = 1 }.ToJson(), rank, 2, rank, endPoint, null);
                var factory = environment.ProcessGroups(start, CPU);
                Assert.Equal(isTcp, factory is TcpWorld);
                using var group = factory.Create("dp", rank, [0, 1]);
                using var sum = full(3, rank + 1.0, dtype: float32);
                using (group.AllReduce(sum, ReduceOp.Sum)) { }
                using var first = sum[0];
                Assert.Equal(3f, first.item<float>());
                group.Barrier();
            }
        });
    }
}
