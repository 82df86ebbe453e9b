using Megatron.Testing;
using Megatron.Testing.ControlPlane;

namespace Megatron.Silo.Tests;

/// <summary>What the control plane may cost; the figures are printed with <c>-diagnostics</c> and by <c>megatron faults bench --goals C1,C2</c>.</summary>
[Collection<Alone>] // a silo of another test would count
[Trait("Category", "faults")] // on a machine that has other things to do the figures are those of the other things
public sealed class ControlPlaneCostTests
{
    [Fact]
    public async Task Reports_Of64RanksAt10StepsASecond_TakeLessThanATwentiethOfACoreAndAMillisecond()
    {
        var cost = await ReportLoad.MeasureAsync(numRanks: 64, numSteps: 200, TestContext.Current.CancellationToken);
        TestContext.Current.SendDiagnosticMessage(cost.ToString());
        Assert.True(cost.CoreShareAt(10) < 0.05 && cost.ReportTime < TimeSpan.FromMilliseconds(1), cost.ToString());
    }

    [Fact]
    public async Task Loss_OfOneOf64Nodes_IsPlannedAndStartedInLessThanTenSeconds()
    {
        var times = await LargeCluster.MeasureLossAsync(numNodes: 64, devicesPerNode: 8, TestContext.Current.CancellationToken);
        TestContext.Current.SendDiagnosticMessage(times.ToString());
        Assert.Equal((512, 504), (times.NumRanks, times.NumRanksAfter));
        Assert.Contains("63 of 64 data-parallel replicas", times.Plan, StringComparison.Ordinal);
        Assert.True(times.Start + times.Recovery < TimeSpan.FromSeconds(10), times.ToString());
    }
}
