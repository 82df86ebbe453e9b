using Megatron.Client.Cli;
using Megatron.Compute.Configuration;

namespace Megatron.Client.Tests.Cli;

public sealed class LaunchEnvironmentTests
{
    [Fact]
    public void Read_NothingSet_IsOneRank() => Assert.Equal(1, Read().WorldSize);

    [Fact]
    public void Read_AllSet_AreTaken()
    {
        var environment = Read(("NPROC_PER_NODE", "4"), ("NNODES", "2"), ("NODE_RANK", "1"), ("MASTER_ADDR", "10.0.0.1"), ("MASTER_PORT", "29500"),
            ("CUDA_VISIBLE_DEVICES", "0,1"), ("MEGATRON_LIBTORCH", "/opt/torch/lib"));
        Assert.Equal(new LaunchEnvironment(4, 2, 1, "10.0.0.1", 29500, "0,1", "/opt/torch/lib"), environment);
        Assert.Equal(8, environment.WorldSize);
    }

    [Theory]
    [InlineData("NPROC_PER_NODE", "0", "1 to 1024")]
    [InlineData("NPROC_PER_NODE", "two", "1 to 1024")]
    [InlineData("NNODES", "-1", "1 to 65536")]
    [InlineData("MASTER_PORT", "70000", "1 to 65535")]
    [InlineData("MASTER_PORT", "１", "1 to 65535")]
    public void Read_BadNumber_NamesVariableAndValue(string name, string value, string range)
    {
        var error = Assert.Single(Assert.Throws<ConfigException>(() => Read((name, value))).Errors);
        Assert.Equal($"CFG010 The environment variable {name} = {value} cannot be used; set a whole number from {range}.", error.ToString());
    }

    [Fact]
    public void Read_NodeRankNotBelowNodes_IsRefused() =>
        Assert.Contains("NODE_RANK = 2 is not below NNODES = 2", Assert.Throws<ConfigException>(() => Read(("NNODES", "2"), ("NODE_RANK", "2"))).Message, StringComparison.Ordinal);

    [Fact]
    public void Placement_OneNode_IsNone() => Assert.Null(Read(("NPROC_PER_NODE", "4"), ("NNODES", "1")).Placement("verify", "nccl"));

    [Fact]
    public void Placement_SeveralNodes_SaysWhichRanksAreHereAndWhereAllMeet()
    {
        var placement = Read(("NPROC_PER_NODE", "2"), ("NNODES", "3"), ("NODE_RANK", "1"), ("MASTER_ADDR", "localhost"), ("MASTER_PORT", "29500")).Placement("verify", "gloo");
        Assert.Equal((6, 2, 6, "127.0.0.1:29500"), (placement?.WorldSize, placement?.FirstRank, placement?.RanksOnThisMachine, placement?.Master.ToString()));
    }

    [Fact]
    public void Placement_SomethingMissing_IsAllListed()
    {
        var errors = Assert.Throws<ConfigException>(() => Read(("NNODES", "2"), ("MASTER_ADDR", "no.such.host.invalid")).Placement("verify", "nccl")).Errors;
        Assert.Equal(4, errors.Count);
        Assert.Contains(errors, error => error.Message.StartsWith("--distributed_backend = nccl does not reach other nodes", StringComparison.Ordinal));
        Assert.Contains(errors, error => error.Message.Contains("MASTER_ADDR = no.such.host.invalid cannot be resolved", StringComparison.Ordinal));
    }

    private static LaunchEnvironment Read(params (string Name, string Value)[] variables) =>
        LaunchEnvironment.Read(name => variables.FirstOrDefault(variable => variable.Name == name).Value);
}
