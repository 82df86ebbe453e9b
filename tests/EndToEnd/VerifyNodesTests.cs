using System.Globalization;
using Megatron.Testing;
using Megatron.Testing.Processes;

namespace Megatron.EndToEnd.Tests;

/// <summary><c>megatron verify</c> as one process on each of several nodes that talk over TCP on this machine: cells of the parity matrix.</summary>
public sealed class VerifyNodesTests(ITestOutputHelper output)
{
    private static readonly TimeSpan patience = TimeSpan.FromMinutes(5);

    [Theory]
    [InlineData(2, 1, "qwen2.5-dense", "--tensor_model_parallel_size 2 --sequence_parallel true --tp_comm_overlap true --micro_batch_size 8")]
    [InlineData(2, 1, "llama3.1-dense", "--pipeline_model_parallel_size 2 --virtual_pipeline_model_parallel_size 2 --micro_batch_size 4")]
    [InlineData(2, 1, "qwen3-dense", "--overlap_grad_reduce true --overlap_param_gather true --ddp_bucket_size 20000 --micro_batch_size 4")]
    [InlineData(4, 1, "qwen2.5-dense", "--tensor_model_parallel_size 2 --sequence_parallel true --pipeline_model_parallel_size 2 --micro_batch_size 4")]
    [InlineData(4, 1, "qwen3-moe", "--pipeline_model_parallel_size 2 --pipeline_schedule zero_bubble --micro_batch_size 2")]
    [InlineData(4, 1, "llama3.1-dense", "--overlap_grad_reduce true --micro_batch_size 2")]
    [InlineData(2, 2, "qwen3-dense", "--tensor_model_parallel_size 2 --micro_batch_size 4")]
    public async Task Verify_RanksInSeveralProcesses_IsWithinTolerance(int nodes, int ranksPerNode, string model, string options)
    {
        var port = FreePorts.Take(1)[0];
        var processes = Enumerable.Range(0, nodes).Select(node => Start(nodes, ranksPerNode, node, port, model, options)).ToArray();
        try
        {
            var codes = await Task.WhenAll(processes.Select(process => process.ExitAsync(patience, TestContext.Current.CancellationToken)));
            Assert.True(codes.All(code => code == 0), string.Join('\n', processes.Select(process => process.Transcript)));
            var verdicts = processes.Select(process => process.Lines[^1].Text).Distinct();
            output.WriteLine(processes[0].Transcript);
            Assert.EndsWith("comparisons are within tolerance.", Assert.Single(verdicts));
        }
        finally
        {
            foreach (var process in processes) await process.DisposeAsync();
        }
    }

    [Fact]
    public async Task Verify_BackendAndVariablesMissing_AreOneListOfSentences()
    {
        await using var process = ProgramProcess.StartMegatron(
            ["verify", "--golden", Repository.Asset("golden", "qwen3-dense")], new Dictionary<string, string?> { ["NNODES"] = "2" });
        Assert.Equal(2, await process.ExitAsync(patience, TestContext.Current.CancellationToken));
        foreach (var words in (string[])["--distributed_backend = nccl does not reach other nodes", "NODE_RANK is missing", "MASTER_ADDR is missing", "MASTER_PORT is missing"])
            Assert.Contains(words, process.Transcript);
    }

    private static ProgramProcess Start(int nodes, int ranksPerNode, int node, int port, string model, string options) => ProgramProcess.StartMegatron(
        ["verify", "--golden", Repository.Asset("golden", model), "--distributed_backend", "gloo", .. options.Split(' ')],
        new Dictionary<string, string?>
        {
            ["NNODES"] = Number(nodes), ["NPROC_PER_NODE"] = Number(ranksPerNode), ["NODE_RANK"] = Number(node),
            ["MASTER_ADDR"] = "localhost", ["MASTER_PORT"] = Number(port),
        });

    private static string Number(int value) => value.ToString(CultureInfo.InvariantCulture);
}
