using System.Globalization;
using Megatron.Client.Cli;
using Megatron.Testing.Processes;

namespace Megatron.EndToEnd.Tests;

/// <summary>The reference's launch: the same command on every node with NNODES, NODE_RANK, MASTER_ADDR, MASTER_PORT, NPROC_PER_NODE; no Redis.</summary>
public sealed class NodeLaunchTests
{
    private static readonly TimeSpan patience = TimeSpan.FromSeconds(120);

    private static CancellationToken Cancellation => TestContext.Current.CancellationToken;

    [Fact]
    public async Task TwoNodes_TrainTheBitsOfOneNodeAndExitAlike()
    {
        using var work = new Workspace();
        string[] words = ["--train_iters", "6"];
        string port = FreePorts.Take(1)[0].ToString(CultureInfo.InvariantCulture);
        await using var second = StartNode(1, 2, port, work.Training("out", words)); // node 0 may come later
        await using var first = StartNode(0, 2, port, work.Training("out", words));
        foreach (var node in (ProgramProcess[])[first, second])
            Assert.True(await node.ExitAsync(patience, Cancellation) == ExitCode.Ok, first.Transcript + "\n--- node 1\n" + second.Transcript);
        Assert.Contains(second.Lines, line => line.Text.StartsWith("node1: follows job ", StringComparison.Ordinal));

        await using var whole = ProgramProcess.StartMegatron(work.Training("whole", words), new Dictionary<string, string?> { ["NPROC_PER_NODE"] = "2" });
        Assert.True(await whole.ExitAsync(patience, Cancellation) == ExitCode.Ok, whole.Transcript);
        Assert.Equal(RunFiles.Losses(Directory.GetDirectories(work.Path("whole")).Single()), RunFiles.Losses(Directory.GetDirectories(work.Path("out")).Single()));
    }

    [Fact]
    public async Task Mistake_EndsEveryNodeWithTheSameCode()
    {
        using var work = new Workspace();
        string port = FreePorts.Take(1)[0].ToString(CultureInfo.InvariantCulture);
        string[] words = work.Training("out", "--train_iters", "6", "--tensor_model_parallel_size", "3");
        await using var first = StartNode(0, 2, port, words);
        await using var second = StartNode(1, 2, port, words);
        foreach (var node in (ProgramProcess[])[first, second])
        {
            Assert.Equal(ExitCode.BadInput, await node.ExitAsync(patience, Cancellation));
            Assert.Contains(node.Lines, line => line.IsError && line.Text.StartsWith("error: CFG007 2 ranks are not a multiple of ", StringComparison.Ordinal));
        }
        Assert.False(Directory.Exists(work.Path("out")));
    }

    [Theory]
    [InlineData("NODE_RANK", "error: CFG010 NNODES = 2, but the environment variable NODE_RANK is not set; set 0 on the first node to 1 on the last.")]
    [InlineData("MASTER_ADDR", "error: CFG010 NNODES = 2, but the environment variable MASTER_ADDR is not set; set the address of node 0 on every node.")]
    [InlineData("MASTER_PORT", "error: CFG010 NNODES = 2, but the environment variable MASTER_PORT is not set; set the same free port of node 0 on every node.")]
    public async Task MissingVariable_IsOneSentence(string missing, string expected)
    {
        var variables = Variables(0, 2, "29500");
        variables[missing] = null;
        var console = new CommandConsole(new StringWriter(), new StringWriter());
        int code = await new MegatronCli(console, variables.GetValueOrDefault, TimeProvider.System).RunAsync(["sft", "--model", "x"], Cancellation);
        Assert.Equal((ExitCode.BadInput, expected), (code, console.Error.ToString()?.Trim()));
    }

    private static ProgramProcess StartNode(int rank, int nodes, string port, string[] words) => ProgramProcess.StartMegatron(words, Variables(rank, nodes, port));

    private static Dictionary<string, string?> Variables(int rank, int nodes, string port) => new()
    {
        ["NNODES"] = nodes.ToString(CultureInfo.InvariantCulture), ["NODE_RANK"] = rank.ToString(CultureInfo.InvariantCulture),
        ["MASTER_ADDR"] = "127.0.0.1", ["MASTER_PORT"] = port, ["NPROC_PER_NODE"] = "1",
    };
}
