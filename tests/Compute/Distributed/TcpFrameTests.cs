using System.Net;
using System.Net.Sockets;
using System.Text;
using Megatron.Compute.Distributed;
using Megatron.Testing;
using static TorchSharp.torch;

namespace Megatron.Compute.Tests.Distributed;

public sealed class TcpFrameTests
{
    [Fact]
    public void Parse_WhatToBytesWrote_RoundTripsInPieces()
    {
        var frame = new TcpFrame(TcpFrameKind.Enter, 1L << 40, "all_to_all(Float32[*, 3])", [0, 5, -1, long.MaxValue]);
        var bytes = frame.ToBytes();
        for (var length = 0; length < bytes.Length; length++)
        {
            Assert.Null(TcpFrame.Parse(bytes.AsSpan(0, length), 4, out var none));
            Assert.Equal(0, none);
        }
        var parsed = TcpFrame.Parse([.. bytes, 1, 2, 3], 4, out var taken);
        Assert.Equal(bytes.Length, taken);
        Assert.NotNull(parsed);
        Assert.Equal((frame.Kind, frame.Number, frame.Text), (parsed.Kind, parsed.Number, parsed.Text));
        Assert.Equal(frame.Splits, parsed.Splits);
    }

    [Fact]
    public void ToBytes_EndlessText_IsCutToWhatParseAllows()
    {
        var bytes = new TcpFrame(TcpFrameKind.Abort, -1, new string('x', 1 << 20), []).ToBytes();
        Assert.Equal(TcpFrame.MaxTextLength, TcpFrame.Parse(bytes, 2, out _)?.Text.Length);
    }

    [Theory]
    [InlineData(0)]
    [InlineData(-1)]
    [InlineData(int.MinValue)]
    [InlineData(int.MaxValue)]
    [InlineData(12)]
    public void Parse_ImpossibleLength_IsRefusedBeforeAnythingIsRead(int length) =>
        Assert.Throws<InvalidDataException>(() => TcpFrame.Parse(BitConverter.GetBytes(length), 4, out _));

    [Theory]
    [InlineData(1)]
    [InlineData(3)]
    [InlineData(-1)]
    [InlineData(int.MaxValue)]
    public void Parse_ImpossibleNumberOfSplits_IsRefused(int numSplits)
    {
        var bytes = new TcpFrame(TcpFrameKind.Enter, 0, "barrier", []).ToBytes();
        BitConverter.GetBytes(numSplits).CopyTo(bytes, 13);
        Assert.Throws<InvalidDataException>(() => TcpFrame.Parse(bytes, 4, out _));
    }

    [Fact]
    public void Parse_RandomBytes_GivesAFrameNothingOrARefusal()
    {
        const int Seed = 99;
        TestContext.Current.SendDiagnosticMessage($"seed {Seed}");
        var random = new Random(Seed);
        for (var i = 0; i < 100_000; i++)
        {
            var bytes = new byte[random.Next(80)];
            random.NextBytes(bytes);
            if (bytes.Length >= 5 && i % 2 == 0) BitConverter.GetBytes(bytes.Length - 4).CopyTo(bytes, 0);
            if (bytes.Length >= 5 && i % 4 == 0) bytes[4] = (byte)(1 + i % 5);
            try
            {
                if (TcpFrame.Parse(bytes, 4, out var taken) is not null) Assert.InRange(taken, 17, bytes.Length);
                else Assert.Equal(0, taken);
            }
            catch (InvalidDataException)
            {
                // The refusal.
            }
        }
    }

    /// <summary>Bytes after a correct hello: a frame that is none, a number out of order, or the end of the connection.</summary>
    [Theory]
    [InlineData("garbage", "does not follow the protocol")]
    [InlineData("order", "does not follow the protocol")]
    [InlineData("end", "is lost")]
    public void Wait_PeerBreaksTheProtocol_FaultNamesIt(string what, string expected)
    {
        var store = new InProcessRendezvousStore();
        using var world = new TcpWorld(store, new TcpWorldOptions
        {
            Attempt = "job/1", Rank = 0, Address = IPAddress.Loopback, Timeout = TimeSpan.FromSeconds(30), JoinTimeout = TimeSpan.FromSeconds(30),
        });
        var token = Convert.FromHexString(Encoding.UTF8.GetString(store.Get("job/1/tcp/0", TimeSpan.Zero, default)).Split(' ')[1]);
        var sockets = Enum.GetValues<TcpChannel>().Select(channel => Call(world.EndPoint, token, channel)).ToArray();
        RankThreads.Run(1, _ =>
        {
            using var leaks = LeakCheck.Start();
            using var scope = NewDisposeScope();
            using var group = world.Create("tp", 0, [0, 1]);
            using var work = group.AllReduce(ones(4), ReduceOp.Sum);
            if (what == "garbage") sockets[0].Send([0xff, 0xff, 0xff, 0x7f, 1, 2, 3]);
            else if (what == "order") sockets[0].Send(new TcpFrame(TcpFrameKind.Enter, 7, "all_reduce(Float32[4], Sum)", []).ToBytes());
            else sockets[0].Dispose();
            var fault = Assert.Throws<RankFaultException>(work.Wait);
            Assert.Equal(1, fault.CulpritRank);
            Assert.Contains(expected, fault.Message);
        });
        Array.ForEach(sockets, socket => socket.Dispose());
    }

    private static Socket Call(IPEndPoint endPoint, byte[] token, TcpChannel channel)
    {
        var socket = new Socket(AddressFamily.InterNetwork, SocketType.Stream, ProtocolType.Tcp);
        socket.Connect(endPoint);
        socket.Send(new TcpHello(TcpHello.HashOf("job/1"), token, 0, new TcpChannelKey(Convert.ToHexString(TcpHello.HashOf("tp:0,1")), 1, channel)).ToBytes());
        var reply = new byte[1];
        Assert.Equal(1, socket.Receive(reply));
        Assert.Equal((byte)TcpWelcome.Accepted, reply[0]);
        return socket;
    }
}
